"""A run from its first line to its last, and what it must never get wrong."""

from __future__ import annotations

import json

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from cdra_mm.core import CheckpointError, ConfigError, Plan, adapters
from cdra_mm.mm.checkpoints.base_source import BaseSource
from cdra_mm.mm.checkpoints.record import base_state, read_record

from . import toy


class Stop(Exception):
    """A run that is killed."""


@HOOKS.register_module(force=True)
class StopAt(Hook):
    """Kills a run after an iteration; runs after the checkpoint was written."""

    priority = 'LOWEST'

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if runner.iter + 1 == self.at:
            raise Stop


def weights(runner: Runner) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in runner.model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A finished run of a segmentor: (folder, runner)."""
    folder = tmp_path_factory.mktemp('run')
    return folder, toy.train(toy.config(folder))


def test_a_run_trains_exactly_what_the_plan_says(run):
    folder, runner = run
    backbone = runner.model.backbone
    plan = Plan.from_json((folder / 'run/cdra_plan.json').read_text())
    names = {block.name for block in plan.blocks}
    assert names and names <= set(adapters(backbone))
    trainable = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert (
        trainable
        == plan.num_trainable
        <= 0.05 * sum(t.numel() for n, t in backbone.named_parameters() if '.cdra.' not in n)
    )

    optimized = {id(p) for g in runner.optim_wrapper.optimizer.param_groups for p in g['params']}
    assert optimized == {id(p) for p in runner.model.parameters() if p.requires_grad}

    base = torch.load(toy.base_file(folder), weights_only=True)['state_dict']
    for name, parameter in base_state(backbone).items():
        same = torch.equal(parameter, base[name])
        trained = dict(backbone.named_parameters())[name].requires_grad
        assert same != trained, name
    for name, adapter in adapters(backbone).items():
        for parameter in adapter.parameters():
            assert parameter.abs().sum() > 0, name


def test_a_checkpoint_holds_what_is_trained_and_names_the_rest(run):
    folder, runner = run
    checkpoint = torch.load(folder / 'run/iter_8.pth', weights_only=False)
    keys = set(checkpoint['state_dict'])
    frozen = {
        f'backbone.{n}' for n, p in runner.model.backbone.named_parameters() if not p.requires_grad
    }
    assert frozen and not frozen & keys
    assert {k for k in runner.model.state_dict() if k.startswith('decode_head.')} <= keys
    base = read_record(checkpoint['state_dict'], 'backbone.').base
    assert base == BaseSource('init_cfg', toy.base_file(folder))


def test_the_state_dict_of_a_checkpoint_loads_with_weights_only(run, tmp_path):
    folder, _ = run
    state = torch.load(folder / 'run/iter_8.pth', weights_only=False)['state_dict']
    torch.save(dict(state), tmp_path / 'state.pth')
    assert torch.load(tmp_path / 'state.pth', weights_only=True).keys() == state.keys()


def test_summary_tells_cost_and_result(run):
    folder, _ = run
    summary = json.loads((folder / 'run/summary.json').read_text())
    assert summary['method'] == 'cdra'
    assert summary['percent_of_backbone'] == pytest.approx(
        100 * summary['trainable_backbone'] / summary['backbone_parameters']
    )
    assert summary['checkpoint_bytes'] == (folder / 'run/iter_8.pth').stat().st_size
    assert summary['adapter_bytes'] == (folder / 'run/cdra_adapter.safetensors').stat().st_size
    assert {'mIoU', 'mDice'} <= set(summary['metrics'])
    assert summary['scoring_seconds'] > 0 and summary['training_seconds'] > 0


def test_resume_never_plans_again(run, monkeypatch):
    folder, runner = run
    monkeypatch.setattr(
        'cdra_mm.mm.planning.run_plan.score_backbone',
        lambda *_, **__: pytest.fail('planned again'),
    )
    cfg = toy.config(folder, resume=True, load_from=str(folder / 'run/iter_4.pth'))
    cfg.work_dir = str(folder / 'again')
    assert_same(weights(runner), weights(toy.train(cfg)))


def test_resume_with_other_settings_is_refused(run):
    folder, _ = run
    cfg = toy.config(
        folder, cdra=dict(budget_percent=3.0), resume=True, load_from=str(folder / 'run/iter_4.pth')
    )
    with pytest.raises(CheckpointError, match=r'budget_percent=5\.0.*3\.0.*new run'):
        toy.train(cfg)


def test_resume_of_a_checkpoint_without_adapters_is_refused(tmp_path):
    cfg = toy.config(tmp_path)
    cfg.default_hooks.pop('cdra')
    toy.train(cfg)
    cfg = toy.config(tmp_path, resume=True, load_from=str(tmp_path / 'run/iter_4.pth'))
    with pytest.raises(CheckpointError, match='cannot resume.*without resume'):
        toy.train(cfg)


def test_load_from_an_adapted_checkpoint_goes_on_with_its_adapters(run, monkeypatch):
    folder, runner = run
    monkeypatch.setattr(
        'cdra_mm.mm.planning.run_plan.score_backbone',
        lambda *_, **__: pytest.fail('planned again'),
    )
    cfg = toy.config(folder, load_from=str(folder / 'run/iter_8.pth'))
    cfg.work_dir = str(folder / 'further')
    further = toy.train(cfg)
    assert adapters(further.model.backbone).keys() == adapters(runner.model.backbone).keys()
    optimized = sum(
        p.numel() for g in further.optim_wrapper.optimizer.param_groups for p in g['params']
    )
    assert optimized == sum(p.numel() for p in runner.model.parameters() if p.requires_grad)


def test_an_optimizer_object_is_refused(tmp_path):
    cfg = toy.config(tmp_path)
    runner = Runner.from_cfg(cfg)
    optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.1)
    from mmengine.optim import OptimWrapper

    runner.optim_wrapper = OptimWrapper(optimizer)
    runner.cfg.optim_wrapper = None
    with pytest.raises(ConfigError, match='optim_wrapper.*config'):
        runner.train()


def test_test_only_gives_the_metrics_of_training(run):
    folder, runner = run
    trained = json.loads((folder / 'run/summary.json').read_text())['metrics']
    cfg = toy.config(folder, load_from=str(folder / 'run/iter_8.pth'))
    cfg.work_dir = str(folder / 'tested')
    assert Runner.from_cfg(cfg).test() == pytest.approx(trained)
    assert json.loads((folder / 'tested/summary.json').read_text())['test_metrics'] == (
        pytest.approx(trained)
    )


def test_test_with_ema_uses_the_averaged_adapters(tmp_path):
    options = dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)])
    toy.train(toy.config(tmp_path, **options))
    trained = json.loads((tmp_path / 'run/summary.json').read_text())['metrics']
    cfg = toy.config(tmp_path, load_from=str(tmp_path / 'run/iter_8.pth'), **options)
    assert Runner.from_cfg(cfg).test() == pytest.approx(trained)


@pytest.mark.parametrize('method', ['linear', 'full'])
def test_peers_run_behind_the_same_line(tmp_path, method):
    cfg = toy.config(tmp_path, cdra=dict(method=dict(type=method)))
    runner = toy.train(cfg)
    summary = json.loads((tmp_path / 'run/summary.json').read_text())
    backbone = runner.model.backbone
    total = sum(p.numel() for p in backbone.parameters())
    assert summary['trainable_backbone'] == (0 if method == 'linear' else total)
    keys = torch.load(tmp_path / 'run/iter_8.pth', weights_only=False)['state_dict']
    stored = [k for k in keys if k.startswith('backbone.') and not k.startswith('backbone.cdra_')]
    assert len(stored) == (0 if method == 'linear' else len(backbone.state_dict()))
    cfg = toy.config(tmp_path, cdra=dict(method=dict(type=method)))
    cfg.load_from = str(tmp_path / 'run/iter_8.pth')
    assert Runner.from_cfg(cfg).test() == pytest.approx(summary['metrics'])


def test_a_plan_file_replaces_scoring(tmp_path, monkeypatch):
    runner = toy.train(toy.config(tmp_path, cdra=dict(start='random')))
    monkeypatch.setattr(
        'cdra_mm.mm.planning.run_plan.score_backbone', lambda *_, **__: pytest.fail('scored')
    )
    plan = str(tmp_path / 'run/cdra_plan.json')
    cfg = toy.config(tmp_path, cdra=dict(plan=plan), work_dir=str(tmp_path / 'again'))
    assert_same(weights(runner), weights(toy.train(cfg)))


def test_hundreds_of_frozen_parameters_are_not_hundreds_of_lines(tmp_path, capsys):
    cfg = toy.config(tmp_path)
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={'decode_head': dict(lr_mult=10.0)})
    runner = toy.train(cfg)
    captured = capsys.readouterr()
    assert 'requires_grad' not in captured.out + captured.err
    rates = {g['initial_lr'] for g in runner.optim_wrapper.optimizer.param_groups}
    assert rates == {1e-2, 1e-1}


def test_full_fine_tuning_leaves_plain_checkpoints_and_resumes_exactly(tmp_path):
    full = dict(cdra=dict(method=dict(type='full')))
    whole = toy.train(toy.config(tmp_path, **full))
    state = torch.load(tmp_path / 'run/iter_4.pth', weights_only=False)['state_dict']
    assert state.keys() == whole.model.state_dict().keys()
    cfg = toy.config(tmp_path, resume=True, load_from=str(tmp_path / 'run/iter_4.pth'), **full)
    cfg.work_dir = str(tmp_path / 'resumed')
    assert_same(weights(whole), weights(toy.train(cfg)))
