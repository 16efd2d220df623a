"""A rate that ruins the weights is named once, with the rate to try; a healthy one is not."""

from __future__ import annotations

import math

import pytest
import torch

from cdra_mm.core import adapters, remove_adapters, resolve
from cdra_mm.core.adapters.low_rank import LowRank
from cdra_mm.core.adapters.spectrum import update_norm
from cdra_mm.core.model.targets import parameter_of
from cdra_mm.mm import rate_watch
from cdra_mm.mm.adapter_growth import AdapterGrowth
from cdra_mm.mm.backbone import find_backbone
from cdra_mm.mm.feature_drift import FeatureDrift, without_updates
from cdra_mm.mm.rate_watch import KEY, Look, RateWatch
from cdra_mm.mm.rebuild import plain_model

from . import toy
from .scenarios import state
from .test_amp import amp_on_cpu  # noqa: F401

SAYS = 'the learning rate may be too high'
RUINOUS = 0.3


def config(folder, rate=1e-3, iterations=17, method=None, **options):
    """A run that reaches its rate at iteration 10; the first look is at iteration 16."""
    cdra = {} if method is None else dict(method=dict(type=method))
    cfg = toy.config(folder, 'cls', cdra=cdra, **options)
    cfg.optim_wrapper.optimizer.lr = rate
    warm_up = dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=10)
    cfg.param_scheduler = [warm_up]
    cfg.train_cfg.max_iters = iterations
    cfg.train_dataloader.batch_size = 2
    cfg.default_hooks.checkpoint.interval = 100  # but for the last iteration
    return cfg


def told(capsys) -> list[str]:
    printed = capsys.readouterr()
    return [line for line in (printed.out + printed.err).splitlines() if SAYS in line]


def backbone_of(runner):
    return find_backbone(plain_model(runner))


def test_a_ruinous_rate_is_named_once_with_the_rate_to_try(tmp_path, capsys):
    cfg = config(tmp_path, RUINOUS, 33)  # of which 16 and 32 could be looked at
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=dict(backbone=dict(lr_mult=0.5)))
    runner = toy.train(cfg)
    (line,) = told(capsys)
    assert 'at iteration 16 the update is ' in line and '(low_rank)' in line
    assert 'the features have moved by ' in line and ' at the start), at lr=0.15 of 0.15; ' in line
    tried = float(line.split('try lr=')[1].split(' ')[0])
    mult = float(line.split('backbone.lr_mult=')[1].split(' ')[0])
    assert tried <= 0.1 * 0.15 and math.isclose(tried, mult * RUINOUS)
    assert runner.message_hub.get_info(KEY)['done']
    hooks = backbone_of(runner)._forward_pre_hooks.values()
    assert not [hook for hook in hooks if isinstance(getattr(hook, '__self__', None), FeatureDrift)]


def test_a_healthy_rate_is_not_mentioned_and_the_looks_change_nothing(
    tmp_path, capsys, monkeypatch
):
    """With random numbers in the model and in the data."""

    def ends(name):
        cfg = config(tmp_path, work_dir=str(tmp_path / name))
        cfg.model.backbone.drop_path_rate = 0.3
        cfg.train_dataloader.dataset.jitter = True
        return toy.train(cfg)

    looks = []
    look = RateWatch._look
    monkeypatch.setattr(RateWatch, '_look', lambda *args: looks.append(look(*args)) or looks[-1])
    watched = ends('watched')
    assert told(capsys) == [] and not watched.message_hub.get_info(KEY)['done']
    (found,) = looks
    assert 0 < found.update <= found.largest < 0.1 and 0 < found.drift < 0.5
    assert found.kind == 'low_rank' and math.isfinite(found.first + found.last)
    monkeypatch.setattr(rate_watch, 'FIRST', 1000)
    alone = ends('alone')
    assert len(looks) == 1
    expected = state(alone)
    for key, value in state(watched).items():
        assert torch.equal(value, expected[key]), key


def test_a_resumed_run_looks_where_it_has_not_and_says_nothing_twice(tmp_path, capsys):
    toy.train(config(tmp_path, RUINOUS, 12))
    assert told(capsys) == []
    toy.train(config(tmp_path, RUINOUS, 18, resume=True))
    assert len(told(capsys)) == 1
    runner = toy.train(config(tmp_path, RUINOUS, 33, resume=True))
    assert runner.iter == 33 and told(capsys) == []


@pytest.mark.parametrize('method', ['partial', 'gps', 'rlrr', 'adapter'])
def test_other_methods_are_watched_where_they_change_matrices(
    tmp_path, capsys, monkeypatch, method
):
    monkeypatch.setattr(rate_watch, 'FIRST', 2)
    cfg = config(tmp_path, 1e-2, 3, method)
    del cfg.default_hooks.cdra['budget_percent']
    cfg.model.backbone.frozen_stages = -1
    runner = toy.train(cfg)
    assert told(capsys) == []
    found = runner.message_hub.runtime_info.get(KEY)
    kinds = {'gps': {'entries'}, 'rlrr': {'rescaling'}}.get(method, set())
    assert set((found or {'start': {}})['start']) == kinds


@pytest.mark.usefixtures('amp_on_cpu')
@pytest.mark.parametrize('wrapper', ['amp', 'accumulating'])
def test_averages_and_precision_change_nothing_about_it(tmp_path, capsys, wrapper):
    cfg = config(tmp_path, RUINOUS, 17)
    cfg.custom_hooks = [dict(type='EMAHook', ema_type='ExponentialMovingAverage')]
    if wrapper == 'amp':
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    else:
        cfg.optim_wrapper.accumulative_counts = 2
    toy.train(cfg)
    assert len(told(capsys)) == 1


def test_a_loaded_adapter_has_not_moved_yet(tmp_path, capsys):
    """What another run has moved is none of this run's rate."""
    toy.train(config(tmp_path, RUINOUS, 15))
    cfg = config(tmp_path, 1e-5, work_dir=str(tmp_path / 'second'))
    cfg.load_from = str(tmp_path / 'run/iter_15.pth')
    runner = toy.train(cfg)
    assert told(capsys) == []
    assert runner.message_hub.get_info(KEY)['start']['low_rank'] > rate_watch.REPLACED


# What is measured, against the slow way.


@pytest.mark.parametrize(('rows', 'rank', 'cols'), [(9, 3, 7), (1, 1, 1), (2, 5, 3)])
def test_update_norm_is_that_of_the_product(rows, rank, cols):
    up, down = torch.randn(rows, rank), torch.randn(rank, cols)
    expected = (-2 * (up.double() @ down.double())).norm()
    torch.testing.assert_close(update_norm(up, down, -2.0), expected)


@pytest.fixture
def adapted(tmp_path):
    """A run with adapters that have moved."""
    return toy.train(config(tmp_path, 1e-2, 8))


def test_relative_updates_are_those_of_the_blocks(adapted):
    backbone = backbone_of(adapted)
    expected = []
    for name, adapter in adapters(backbone).items():
        if isinstance(adapter, LowRank):
            base = parameter_of(backbone, resolve(backbone, name)).detach().double()
            change = adapter.added_to(base) - base
            block = base[adapter.rows + adapter.start][:, adapter.cols]
            expected.append(float(change.norm() / block.norm()))
    found = AdapterGrowth(backbone).relative_updates()
    assert set(found) == {'low_rank'} and len(expected) > 1  # no vector is among them
    assert found['low_rank'] == pytest.approx(expected, rel=1e-5) and min(expected) > 0


def test_no_update_is_none_of_anything_and_reads_no_block(adapted, monkeypatch):
    backbone = backbone_of(adapted)
    with without_updates(backbone):
        monkeypatch.setattr(AdapterGrowth, '_sizes', lambda _, names: {n: 1 / 0 for n in names})
        found = AdapterGrowth(backbone).relative_updates()
    assert set(found) == {'low_rank'} and set(found['low_rank']) == {0.0}


def test_update_of_a_block_of_zeros_is_left_out(adapted):
    backbone = backbone_of(adapted)
    name, adapter = next((n, a) for n, a in adapters(backbone).items() if isinstance(a, LowRank))
    number = len(AdapterGrowth(backbone).relative_updates()['low_rank'])
    base = parameter_of(backbone, resolve(backbone, name))
    with torch.no_grad():
        rows, cols = (
            torch.arange(side)[part] for side, part in zip(base.shape, adapter.block, strict=False)
        )
        base[rows[:, None], cols] = 0
    assert len(AdapterGrowth(backbone).relative_updates()['low_rank']) == number - 1


def test_drift_is_that_of_the_features_without_the_adapters(adapted):
    backbone = backbone_of(adapted)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    images = torch.randn(2, 3, toy.SIZE, toy.SIZE)
    drift = FeatureDrift(backbone)
    assert drift.measure(adapted) == 0.0  # nothing was seen
    backbone.train()  # gives None, as mmpretrain's backbones do
    backbone(images)
    found = drift.measure(adapted)
    drift.close()
    assert backbone.training
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    with torch.no_grad():
        backbone.eval()
        (now,) = backbone(images)
        remove_adapters(backbone, discard=True)
        (was,) = backbone(images)
    assert found == pytest.approx(float((now - was).norm() / was.norm()), rel=1e-5) and found > 0


@pytest.mark.parametrize(
    ('update', 'drift', 'last', 'done', 'ruin'),
    [
        (0.24, 0.37, 4.5, 32, False),  # damaged weights, a rate that suits them
        (0.011, 0.59, 4.4, 64, False),  # healthy weights
        (0.03, 0.85, 1.3, 64, False),  # the same, which learn: features are replaced there too
        (0.046, 1.0, 2.8, 32, False),
        (0.05, 1.1, 3.3, 64, False),
        (0.99, 0.64, 4.4, 64, True),  # damaged weights, replaced
        (1.0, 0.81, 4.6, 16, True),
        (0.083, 1.1, 4.5, 32, False),  # too early to say
        (0.083, 1.1, 4.28, 64, True),  # healthy weights, nothing is learnt
        (0.083, 1.48, 6.7, 32, True),  # worse than it began
        (0.2, 0.0, 6.0, 16, True),
        (0.2, 0.0, math.nan, 16, False),
        (0.05, 0.0, 6.0, 16, False),
        (math.nan, 1.5, math.nan, 64, False),
        (math.inf, 1.5, math.inf, 64, False),
    ],
)
def test_a_look_tells_ruined_runs_from_others(update, drift, last, done, ruin):
    look = Look(update, update, 'low_rank', drift, 4.6, last, done)
    assert look.is_ruin is ruin
    assert ('the loss is' in str(look)) is not math.isnan(last)
