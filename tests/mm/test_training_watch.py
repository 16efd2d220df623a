"""What the optimizer holds is compared with the plan, and is what the summary reports."""

from __future__ import annotations

import json

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from cdra_mm.core import ConfigError, plan_of
from cdra_mm.mm.rebuild import plain_model

from . import toy


@HOOKS.register_module(force=True)
class Meddles(Hook):
    """A user's hook that changes what is trained after the planning."""

    priority = 'LOW'

    def __init__(self, what: str) -> None:
        self.what = what

    def before_train(self, runner) -> None:
        backbone = plain_model(runner).backbone
        frozen = [p for p in backbone.parameters() if not p.requires_grad]
        if self.what == 'thaw':
            backbone.requires_grad_(True)
        elif self.what == 'freeze':
            backbone.layers[1].requires_grad_(False)
        elif self.what == 'freeze all':
            backbone.requires_grad_(False)
        elif self.what == 'add':
            backbone.requires_grad_(True)
            runner.optim_wrapper.optimizer.add_param_group(dict(params=frozen))


def config(folder, *, method: str = 'bias', **options):
    cfg = toy.config(folder, 'cls', cdra=dict(method=dict(type=method)), **options)
    if method != 'cdra':
        del cfg.default_hooks.cdra['budget_percent']
    cfg.train_cfg.max_iters = 2
    cfg.param_scheduler = None
    cfg.model.backbone.frozen_stages = -1
    return cfg


def meddled(folder, what: str, **options):
    return config(folder, custom_hooks=[dict(type='Meddles', what=what)], **options)


def resting(folder, keys, **options):
    wrapper = dict(
        optimizer=dict(type='SGD', lr=0.1),
        paramwise_cfg=dict(custom_keys={key: dict(lr_mult=0.0) for key in keys}),
    )
    return config(folder, optim_wrapper=wrapper, **options)


def summary_of(folder) -> dict:
    return json.loads((folder / 'run/summary.json').read_text())


def told(capsys, text: str) -> str:
    """The one line of the log with this text."""
    (line,) = [line for line in capsys.readouterr().out.splitlines() if text in line]
    return line


def test_a_thawed_backbone_is_said_and_not_counted(tmp_path, capsys):
    runner = toy.train(meddled(tmp_path, 'thaw'))
    line = told(capsys, 'are not trained')
    assert 'are in no optimizer (' in line and 'attn.qkv.weight' not in line
    summary = summary_of(tmp_path)
    assert summary['trainable_backbone'] == plan_of(runner.model.backbone).num_trainable
    assert 0 < summary['percent_of_backbone'] < 5
    assert summary['trainable_head'] == sum(p.numel() for p in runner.model.head.parameters())


def test_planned_parameters_that_a_hook_freezes_are_named(tmp_path, capsys):
    runner = toy.train(meddled(tmp_path, 'freeze'))
    line = told(capsys, 'are not trained')
    assert ' are frozen (layers.1.ln1.bias' in line and 'no optimizer' not in line
    trained = [p for p in runner.model.backbone.parameters() if p.requires_grad]
    assert summary_of(tmp_path)['trainable_backbone'] == sum(p.numel() for p in trained)


def test_planned_parameters_with_a_rate_of_zero_are_named_and_not_counted(tmp_path, capsys):
    runner = toy.train(resting(tmp_path, ['layers.2']))
    line = told(capsys, 'are not trained')
    assert ' have a learning rate of 0 (layers.2.ln1.bias' in line
    trained = sum(
        p.numel()
        for n, p in runner.model.backbone.named_parameters()
        if p.requires_grad and not n.startswith('layers.2.')
    )
    assert summary_of(tmp_path)['trainable_backbone'] == trained


def test_a_rate_that_a_schedule_starts_at_zero_is_no_rate_of_zero(tmp_path, capsys):
    cfg = config(tmp_path)
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=1e-9, by_epoch=False, end=1)]
    runner = toy.train(cfg)
    assert 'are not trained' not in capsys.readouterr().out
    plan = plan_of(runner.model.backbone)
    assert summary_of(tmp_path)['trainable_backbone'] == plan.num_trainable


@pytest.mark.parametrize('way', ['freeze all', 'rate of 0'])
def test_a_plan_of_which_nothing_would_be_trained_is_refused(tmp_path, way):
    cfg = resting(tmp_path, ['backbone']) if way == 'rate of 0' else meddled(tmp_path, way)
    words = 'have a learning rate of 0' if way == 'rate of 0' else 'are frozen'
    with pytest.raises(ConfigError, match=f'nothing of the backbone would be trained.*{words}'):
        toy.train(cfg)
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_weights_that_checkpoints_would_not_hold_are_not_trained(tmp_path):
    with pytest.raises(ConfigError, match=r'beside the plan \(.* checkpoints would not hold'):
        toy.train(meddled(tmp_path, 'add'))


@pytest.mark.parametrize('method', ['full', 'linear'])
def test_full_and_linear_are_what_the_optimizer_holds(tmp_path, method, capsys):
    runner = toy.train(config(tmp_path, method=method))
    assert 'are not trained' not in capsys.readouterr().out
    share = summary_of(tmp_path)['percent_of_backbone']
    assert share == (100 if method == 'full' else 0)
    assert summary_of(tmp_path)['trainable_head'] == sum(
        p.numel() for p in runner.model.head.parameters()
    )


def test_what_gets_no_gradient_in_the_first_iteration_is_named_once(tmp_path, capsys):
    cfg = config(tmp_path, method='full')
    cfg.model.backbone.update(out_indices=(1,))
    toy.train(cfg)
    assert 'layers.2.ln1.weight' in told(capsys, 'got no gradient in the first iteration')


def test_the_log_says_what_the_optimizer_trains(tmp_path, capsys):
    cfg = config(tmp_path, log_level='INFO')
    plan = plan_of(toy.train(cfg).model.backbone)
    assert f' {plan.num_trainable:,} parameters of the backbone' in told(capsys, 'the optimizer tr')
