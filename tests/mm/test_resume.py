"""A run that is cut at any iteration ends with the weights of one that was not."""

from __future__ import annotations

import copy
import sys
import types
from functools import partial

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import Runner
from mmseg.models import EncoderDecoder

from cdra_mm.core import CheckpointError, ConfigError, adapters

from . import toy
from .test_life_cycle import assert_same, weights

ADAMW = dict(type='AdamW', lr=1e-2)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class TwoOptimizers:
    """One optimizer for the backbone, one for the rest."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None) -> None:
        pass

    def __call__(self, model) -> OptimWrapperDict:
        return OptimWrapperDict(
            backbone=OptimWrapper(torch.optim.AdamW(model.backbone.parameters(), lr=1e-2)),
            head=OptimWrapper(
                torch.optim.SGD(model.decode_head.parameters(), lr=1e-2, momentum=0.9)
            ),
        )


@MODELS.register_module(force=True)
class TwoOptimizersSegmentor(EncoderDecoder):
    """Steps each of its optimizers, as models of several optimizers do."""

    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        loss, logged = self.parse_losses(self._run_forward(data, mode='loss'))
        loss.backward()
        for wrapper in optim_wrapper.values():
            wrapper.step()
            wrapper.zero_grad()
        return logged


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """mmengine's AmpOptimWrapper asks for a GPU; torch has its autocast and scaler for CPUs too."""
    module = sys.modules['mmengine.optim.optimizer.amp_optimizer_wrapper']
    monkeypatch.setattr(module, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(module, 'GradScaler', partial(torch.amp.GradScaler, 'cpu'))
    amp = types.ModuleType('mmengine.runner.amp')
    amp.autocast = lambda dtype=None: torch.autocast('cpu', dtype or torch.float16)
    monkeypatch.setitem(sys.modules, 'mmengine.runner.amp', amp)


def config(folder, work_dir, **options):
    """Six iterations, a checkpoint after each; the sampler has no epochs."""
    options.setdefault('train_cfg', dict(type='IterBasedTrainLoop', max_iters=6, val_interval=100))
    options.setdefault(
        'param_scheduler', [dict(type='CosineAnnealingLR', T_max=6, by_epoch=False, end=6)]
    )
    cfg = toy.config(folder, work_dir=str(folder / work_dir), **options)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.default_hooks.checkpoint.interval = 1
    return cfg


def by_epochs(folder, work_dir, **options):
    """Two epochs of three iterations with a checkpoint after each iteration."""
    options['train_cfg'] = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=100)
    options['param_scheduler'] = [dict(type='MultiStepLR', milestones=[1], by_epoch=True)]
    cfg = config(folder, work_dir, **options)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    cfg.train_dataloader.dataset.size = 12
    cfg.default_hooks.sampler_seed = dict(type='DistSamplerSeedHook')
    return cfg


def resume(build, folder, iteration, **options):
    cfg = build(folder, f'from_{iteration}', resume=True, **options)
    cfg.load_from = str(folder / f'whole/iter_{iteration}.pth')
    return toy.train(cfg)


def assert_exact(build, folder, iterations, **options):
    """Resumes a run at iterations of it, and compares everything that training has changed."""
    whole = toy.train(build(folder, 'whole', **options))
    for iteration in iterations:
        resumed = resume(build, folder, iteration, **options)
        assert resumed.iter == whole.iter == 6
        cut = torch.load(folder / f'whole/iter_{iteration}.pth', weights_only=False)
        key = next(key for key in cut['state_dict'] if key.endswith('.cls_token'))
        assert not torch.equal(cut['state_dict'][key], weights(whole)[key]), 'nothing was left'
        assert_same(weights(whole), weights(resumed))
        a, b = (
            torch.load(folder / f'{d}/iter_6.pth', weights_only=False)
            for d in ('whole', f'from_{iteration}')
        )
        assert_equal(a['optimizer'], b['optimizer'])
        assert_equal(a.get('param_schedulers'), b.get('param_schedulers'))
        assert_equal(a.get('ema_state_dict'), b.get('ema_state_dict'))
    return whole


def assert_equal(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def amp(dtype, **options):
    return dict(type='AmpOptimWrapper', dtype=dtype, optimizer=ADAMW, **options)


# A scale that overflows float16 at first, and grows again within a few steps.
SCALE = dict(init_scale=2.0**17, growth_interval=2)
WINDOW = dict(type='OptimWrapper', optimizer=ADAMW, accumulative_counts=4)
CASES = {
    'fp32': dict(),
    'ema': dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)]),
    'accumulation': dict(optim_wrapper=WINDOW),
    'groups': dict(
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=ADAMW,
            paramwise_cfg=dict(custom_keys={'decode_head': dict(lr_mult=10.0)}),
            clip_grad=dict(max_norm=0.1),
        )
    ),
    'bf16': dict(optim_wrapper=amp('bfloat16')),
    'fp16_accumulation': dict(
        optim_wrapper=amp('float16', loss_scale=SCALE, accumulative_counts=2)
    ),
    'activation_checkpointing': dict(activation_checkpointing=['backbone.layers.1']),
    'full': dict(cdra=dict(method=dict(type='full')), optim_wrapper=WINDOW),
}


@pytest.mark.parametrize('case', CASES)
def test_resume_is_exact(tmp_path, case, amp_on_cpu):
    assert_exact(config, tmp_path, (3,), **CASES[case])  # within the windows of accumulation
    if case == 'ema':
        end = torch.load(tmp_path / 'whole/iter_6.pth', weights_only=False)
        key = 'backbone.cls_token'
        assert not torch.equal(end['state_dict'][key], end['ema_state_dict']['module.' + key])


@pytest.mark.parametrize('case', ['fp32', 'accumulation', 'fp16_accumulation', 'ema'])
def test_resume_is_exact_at_every_iteration(tmp_path, case, amp_on_cpu):
    assert_exact(config, tmp_path, (1, 2, 4, 5), **CASES[case])


def test_resume_of_a_compiled_model_is_exact(tmp_path):
    assert_exact(config, tmp_path, (3,), compile=dict(backend='eager'))


def test_a_resumed_loss_scale_is_the_one_that_was_reached(tmp_path, amp_on_cpu):
    wrapper = amp('float16', loss_scale=SCALE)
    assert_exact(config, tmp_path, (1, 3), optim_wrapper=wrapper)
    states = [
        torch.load(tmp_path / f'whole/iter_{i}.pth', weights_only=False)['optimizer']['loss_scaler']
        for i in range(1, 7)
    ]
    scales = [SCALE['init_scale'], *(state['scale'] for state in states)]
    steps = list(zip(scales, scales[1:], strict=False))
    assert any(b < a for a, b in steps) and any(b > a for a, b in steps), scales


JOINED = dict(
    optim_wrapper=dict(
        type='OptimWrapper',
        optimizer=dict(ADAMW, weight_decay=0.05),
        # Groups lie between each other: norms between matrices, heads behind both.
        paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'decode_head': dict(lr_mult=10.0)}),
        clip_grad=dict(max_norm=0.1),
    ),
    # It takes the rates that it began with from what it keeps of each group.
    param_scheduler=dict(
        type='CosineRestartLR', periods=[4, 4], restart_weights=[1, 0.5], eta_min=0, by_epoch=False
    ),
)


@HOOKS.register_module(force=True)
class Groups(Hook):
    """Notes the rates and sizes of the optimizer's groups in each iteration."""

    seen = ()

    def after_train_iter(self, runner, *_, **__):
        groups = runner.optim_wrapper.optimizer.param_groups
        Groups.seen = [*Groups.seen, [(g['lr'], len(g['params'])) for g in groups]]


def test_resume_with_joined_groups_is_exact(tmp_path):
    """While it trains; its checkpoints have a group for each parameter, as mmengine makes them."""
    Groups.seen = []
    options = dict(**JOINED, custom_hooks=[dict(type='Groups')])
    whole = assert_exact(config, tmp_path, (3,), **options)
    sizes = {tuple(size for _, size in groups) for groups in Groups.seen}
    assert len(sizes) == 1 and len(sizes.pop()) == 3
    assert Groups.seen[3:6] == Groups.seen[6:], 'the same rates after the resume'
    saved = torch.load(tmp_path / 'whole/iter_3.pth', weights_only=False)
    groups, schedulers = saved['optimizer']['param_groups'], saved['param_schedulers']
    assert [g['params'] for g in groups] == [[i] for i in range(len(groups))]
    assert set(saved['optimizer']['state']) == set(range(len(groups)))
    trained = {name: p for name, p in whole.model.named_parameters() if p.requires_grad}
    rates = [10 * ADAMW['lr'] if 'decode_head' in name else ADAMW['lr'] for name in trained]
    assert [group['initial_lr'] for group in groups] == pytest.approx(rates)
    assert schedulers[0]['base_values'] == pytest.approx([*rates, ADAMW['lr']])
    shapes = [saved['optimizer']['state'][i]['exp_avg'].shape for i in range(len(groups))]
    assert shapes == [parameter.shape for parameter in trained.values()]


def test_groups_may_be_told_apart_differently_when_a_run_is_resumed(tmp_path):
    """The settings of the checkpoint hold, for each parameter."""
    toy.train(config(tmp_path, 'whole', **JOINED))
    other = copy.deepcopy(JOINED)
    other['optim_wrapper']['paramwise_cfg']['custom_keys']['decode_head']['lr_mult'] = 1.0
    Groups.seen = []
    resume(config, tmp_path, 3, **other, custom_hooks=[dict(type='Groups')])
    assert len(Groups.seen) == 3 and all(len(groups) == 3 for groups in Groups.seen)
    for (low, _), _, (high, _) in Groups.seen:
        assert high == pytest.approx(10 * low)


def test_resume_within_an_epoch_goes_on_where_it_was(tmp_path):
    # 2 lies within the first epoch, 3 is its last iteration: its end is still to come.
    assert_exact(by_epochs, tmp_path, (2, 3, 4))


def test_an_epoch_of_another_length_is_refused_within_it(tmp_path):
    toy.train(by_epochs(tmp_path, 'whole'))
    cfg = by_epochs(tmp_path, 'other', resume=True)
    cfg.load_from = str(tmp_path / 'whole/iter_2.pth')
    cfg.train_dataloader.dataset.size = 16
    with pytest.raises(CheckpointError, match='iteration 2 of the 3 of an epoch, which has 4'):
        toy.train(cfg)


def test_resume_with_two_optimizers_is_exact(tmp_path):
    two = dict(optim_wrapper=dict(constructor='TwoOptimizers'), param_scheduler=None)

    def build(folder, work_dir, **options):
        cfg = config(folder, work_dir, **{**options, **two})
        cfg.model.type = 'TwoOptimizersSegmentor'
        return cfg

    whole = assert_exact(build, tmp_path, (3,))
    for name, part in (('backbone', whole.model.backbone), ('head', whole.model.decode_head)):
        groups = whole.optim_wrapper[name].optimizer.param_groups
        held = {id(parameter) for group in groups for parameter in group['params']}
        assert held == {id(parameter) for parameter in part.parameters() if parameter.requires_grad}

    with pytest.raises(ConfigError, match="optimizer 'backbone'.*nothing left to train"):
        toy.train(build(tmp_path, 'linear', cdra=dict(method=dict(type='linear'))))


def test_an_optimizer_object_inside_a_dict_is_refused(tmp_path):
    cfg = config(tmp_path, 'objects')
    runner = Runner.from_cfg(cfg)
    optimizer = OptimWrapper(torch.optim.SGD(runner.model.parameters(), lr=0.1))
    runner.cfg.optim_wrapper = dict(all=optimizer)
    runner.optim_wrapper = OptimWrapperDict(all=optimizer)
    with pytest.raises(ConfigError, match='optim_wrapper is OptimWrapper.*as a config'):
        runner.train()


@pytest.mark.parametrize('blocks', [['backbone.layers.0'], ['decode_head.convs']])
def test_recomputed_blocks_with_frozen_inputs_are_trained(tmp_path, blocks):
    method = {} if 'backbone' in blocks[0] else dict(method=dict(type='linear'))
    options = dict(cdra=dict(also_train=(), **method))
    plain = toy.train(config(tmp_path, 'plain', **options))
    again = toy.train(config(tmp_path, 'again', activation_checkpointing=blocks, **options))
    # Parameters: a recomputed batch norm counts each batch twice.
    assert_same(*({n: p.data for n, p in r.model.named_parameters()} for r in (plain, again)))
    assert method or any(
        adapter.up.any()
        for name, adapter in adapters(again.model.backbone).items()
        if name.startswith('layers.0.') and hasattr(adapter, 'up')
    )
