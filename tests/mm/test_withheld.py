"""What a backbone freezes itself, or no loss reaches, is found by evidence and left alone."""

from __future__ import annotations

import json

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmpretrain.models import VisionTransformer

from cdra_mm.core import PlanError, adapters, find_targets, plan_of
from cdra_mm.methods.base import FROZEN, UNREACHED
from cdra_mm.mm.planning import withheld as withheld_module
from cdra_mm.mm.planning.withheld import withheld_parameters
from cdra_mm.mm.rebuild import plain_model

from . import test_methods_runs, toy
from .scenarios import plain, ready

SWIN = dict(
    type='SwinTransformer',
    pretrain_img_size=32,
    window_size=2,
    patch_size=2,
    strides=(2, 2, 2, 2),
    embed_dims=16,
    depths=[2, 1, 2, 1],
    num_heads=[1, 2, 4, 8],
)


@MODELS.register_module(force=True)
class SelfFreezing(VisionTransformer):
    """An extractor: its train() freezes whatever is inside of it, as often as it is called."""

    def train(self, mode: bool = True):
        super().train(mode)
        for parameter in self.parameters():
            parameter.requires_grad = False


@HOOKS.register_module(force=True)
class Freezes(Hook):
    """A user's hook that sets requires_grad before the planning."""

    priority = 'HIGHEST'

    def before_train(self, runner) -> None:
        runner.model.backbone.layers[1].requires_grad_(False)


def config(folder, name: str = 'cdra', task: str = 'seg', **backbone):
    cfg = test_methods_runs.config(folder, name, task)
    cfg.train_cfg.max_iters = 1
    cfg.model.backbone.update(backbone)
    cfg.train_dataloader.batch_size = 2
    return cfg


def swin(folder, **options):
    cfg = toy.config(folder)
    cfg.model.backbone = dict(SWIN, **options)
    cfg.model.decode_head.in_channels = 128
    cfg.train_cfg.max_iters = 1
    cfg.default_hooks.cdra.num_samples = 4
    return cfg


def planned(runner) -> set[str]:
    return {n for n, p in runner.model.backbone.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('where', ['seg', 'cls'])
def test_stages_that_swins_train_freezes_are_not_planned(tmp_path, where):
    cfg = swin(tmp_path, frozen_stages=3)
    if where == 'cls':
        arch = {key: SWIN[key] for key in ('embed_dims', 'depths', 'num_heads')}
        sizes = dict(img_size=32, window_size=2, patch_size=2, frozen_stages=2)
        cfg = toy.config(tmp_path, 'cls')
        cfg.model.backbone = dict(type='SwinTransformer', arch=arch, **sizes)
        cfg.model.neck = dict(type='GlobalAveragePooling')
        cfg.model.head.in_channels = 128
        cfg.train_cfg.max_iters = 1
    runner = toy.train(cfg)
    backbone = runner.model.backbone
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert trained == plan_of(backbone).num_trainable > 0
    assert not any(name.startswith(('patch_embed.', 'stages.0.')) for name in adapters(backbone))
    summary = json.loads((tmp_path / 'run/summary.json').read_text())
    assert summary['trainable_backbone'] == trained


def test_a_vit_that_freezes_stages_when_it_is_built_keeps_them_frozen(tmp_path, capsys):
    cfg = config(tmp_path, 'bias', frozen_stages=2)
    cfg.log_level = 'INFO'
    runner = toy.train(cfg)
    assert planned(runner) == {
        n for n, _ in runner.model.backbone.named_parameters()
        if n.endswith('bias') and n.startswith(('layers.2.', 'ln1.'))
    }  # fmt: skip
    line = 'are not adapted, the backbone freezes it itself: '
    told = [text for text in capsys.readouterr().out.splitlines() if line in text]
    assert len(told) == 1 and 'cls_token' in told[0]


def test_full_trains_all_but_what_the_backbone_freezes(tmp_path):
    runner = toy.train(config(tmp_path, 'full', frozen_stages=2))
    blocks = {name.split('.')[1] for name in planned(runner) if name.startswith('layers.')}
    assert blocks == {'2'}


def test_a_hook_that_freezes_before_the_planning_is_an_owner_too(tmp_path):
    cfg = config(tmp_path, 'lora')
    cfg.custom_hooks = [dict(type='Freezes')]
    runner = toy.train(cfg)
    blocks = {name.split('.')[1] for name in adapters(runner.model.backbone)}
    assert blocks == {'0', '2'}


@pytest.mark.parametrize('name', ['cdra', 'lora', 'full'])
def test_a_backbone_that_freezes_all_of_itself_is_refused_before_scoring(
    tmp_path, name, monkeypatch
):
    monkeypatch.setattr(
        'cdra_mm.mm.planning.run_plan.score_backbone', lambda *_, **__: pytest.fail('scored')
    )
    cfg = config(tmp_path, name, type='SelfFreezing')
    with pytest.raises(
        PlanError, match=r'nothing is left to train in SelfFreezing: it freezes 4\d'
    ):
        toy.train(cfg)


def test_adapters_that_train_would_freeze_are_refused_by_name(tmp_path):
    cfg = config(tmp_path, 'mlp', type='SelfFreezing')
    with pytest.raises(PlanError, match=r'SelfFreezing freezes 2 .*cdra.hidden_layers.hidden_weig'):
        toy.train(cfg)


def test_a_plan_file_for_more_than_can_be_trained_is_refused(tmp_path):
    toy.train(config(tmp_path, 'lora'))
    cfg = config(tmp_path, 'lora', frozen_stages=1)
    cfg.default_hooks.cdra.plan = str(tmp_path / 'run/cdra_plan.json')
    with pytest.raises(PlanError, match=r'the first is layers.0.*the backbone freezes it itself'):
        toy.train(cfg)


@pytest.mark.parametrize('name', ['cdra', 'partial', 'vpt_deep', 'rlrr'])  # all: tests/methods
def test_every_trained_parameter_has_a_gradient_where_out_indices_end_early(tmp_path, name):
    cfg = config(tmp_path, name, out_indices=(1,))
    runner = toy.Runner.from_cfg(cfg)
    got: set[str] = set()

    class Watch(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner, *args, **kwargs) -> None:
            for key, parameter in plain_model(runner).backbone.named_parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(lambda _, key=key: got.add(key))

    runner.register_hook(Watch())
    runner.train()
    assert got == planned(runner) != set()
    assert not any(name.startswith('layers.2.') for name in got)


def test_gamma_is_of_what_competes(tmp_path):
    cfg = toy.config(tmp_path, cdra=dict(budget_percent=None, gamma=0.05, min_rank=1))
    cfg.model.backbone.out_indices = (1,)
    cfg.train_cfg.max_iters = 1
    backbone = toy.train(cfg).model.backbone
    targets = [t for t in find_targets(backbone).values() if not t.path.startswith('layers.2.')]
    assert plan_of(backbone).num_competing == sum(target.numel for target in targets)


@pytest.mark.parametrize(('name', 'asks'), [('full', False), ('linear', False), ('lora', True)])
def test_only_methods_that_train_inside_ask_what_the_loss_reaches(
    tmp_path, name, asks, monkeypatch
):
    asked = []
    reached = withheld_module._reached
    monkeypatch.setattr(
        withheld_module, '_reached', lambda *args: asked.append(args) or reached(*args)
    )
    toy.train(config(tmp_path, name))
    assert bool(asked) == asks


@pytest.mark.parametrize('wrapper', ['plain', 'with_cp', 'checkpointed'])
def test_the_probe_leaves_everything_as_it_was(tmp_path, wrapper):
    options = {}
    if wrapper == 'checkpointed':
        options = dict(activation_checkpointing=[f'backbone.layers.{i}' for i in range(3)])
    runner = ready(tmp_path, **options)
    model = plain(runner)
    if wrapper == 'checkpointed':
        from mmengine.runner import turn_on_activation_checkpointing as turn_on

        turn_on(model, options['activation_checkpointing'])
    if wrapper == 'with_cp':
        for layer in model.backbone.layers:
            layer.with_cp = True
    model.backbone.cls_token.grad = torch.ones_like(model.backbone.cls_token)
    model.backbone.layers[0].requires_grad_(False)
    model.backbone.layers[1].train(False)
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    withheld = withheld_parameters(runner, model.backbone, 0)
    assert set(withheld.values()) == {FROZEN}
    assert all(name.startswith('layers.0.') for name in withheld)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ['backbone.cls_token']


def test_a_token_that_nothing_reads_is_not_trained(tmp_path):
    runner = ready(tmp_path)
    backbone = plain(runner).backbone
    backbone.register_parameter('mask_token', torch.nn.Parameter(torch.zeros(1, 1, 32)))
    assert withheld_parameters(runner, backbone, 0) == {'mask_token': UNREACHED}


def test_a_loss_that_does_not_run_in_this_way_is_said_and_hides_nothing(tmp_path, capsys):
    runner = ready(tmp_path)
    model = plain(runner)
    model.loss = lambda *_: 1 / 0
    assert withheld_parameters(runner, model.backbone, 0) == {}
    assert capsys.readouterr().out.count('ZeroDivisionError') == 1
