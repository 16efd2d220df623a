"""Stock configs with nothing but the one line: scored, trained, resumed, tested and merged."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor

from cdra_mm.core import CDRAError, ConfigError, Plan, adapters
from cdra_mm.mm.export.merging import merge_checkpoint
from cdra_mm.mm.inputs import check_inputs
from cdra_mm.mm.launch import plain_config

from .stock import ONE_LINE, Stock, runner_of, write_data
from .stock_table import REFUSED, STOCK


@pytest.fixture
def repeatable(monkeypatch):
    """Augmentation and dropout depend on the sample alone: mmengine restores no random state."""
    original = BaseDataset.__getitem__

    def seeded(self, index):
        random.seed(index)
        np.random.seed(index)
        torch.manual_seed(index)
        return original(self, index)

    monkeypatch.setattr(BaseDataset, '__getitem__', seeded)


@pytest.mark.usefixtures('repeatable')
@pytest.mark.parametrize('stock', STOCK, ids=lambda stock: stock.name)
def test_stock_config_is_scored_trained_resumed_tested_and_merged(stock, tmp_path):
    write_data(stock.package, tmp_path)
    stock.write_base(tmp_path)
    cfg = stock.reduced(tmp_path)

    runner = runner_of(cfg, tmp_path / 'run')
    runner.train()
    check_plan(runner, tmp_path / 'run', stock)
    half, last = sorted((tmp_path / 'run').glob('*_[0-9].pth'))
    check_checkpoint(runner, half, last, stock)

    resumed = runner_of(cfg, tmp_path / 'resumed', resume=True, load_from=str(half))
    resumed.train()
    assert_same(resumed.model.state_dict(), runner.model.state_dict())

    tested = runner_of(cfg, tmp_path / 'tested', load_from=str(last))
    metrics = tested.test()
    # Where weights are averaged, the average is what is tested.
    if 'ema_state_dict' not in torch.load(last, weights_only=False):
        assert_same(tested.model.state_dict(), runner.model.state_dict())
    check_merge(stock, cfg, last, tested, metrics, tmp_path)


@pytest.mark.parametrize(('stock', 'reason'), REFUSED, ids=[stock.name for stock, _ in REFUSED])
def test_stock_config_that_cannot_be_adapted_is_refused_with_the_reason(stock, reason, tmp_path):
    write_data(stock.package, tmp_path)
    with pytest.raises(CDRAError, match=reason):
        runner_of(stock.reduced(tmp_path), tmp_path / 'run').train()
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_headless_config_of_a_backbone_lacks_what_training_needs():
    """mmpretrain's DINOv2 configs hold a backbone and nothing to train it with."""
    cfg = Stock('mmpretrain', 'dinov2/vit-base-p14_dinov2-pre_headless.py').load()
    cfg.merge_from_dict(ONE_LINE)
    with pytest.raises(ConfigError, match='has no train_cfg.*needed to train'):
        check_inputs(cfg, 'train')


def check_plan(runner: Runner, folder: Path, stock: Stock) -> None:
    """Something was adapted, it is what the plan says, and it moved."""
    plan = Plan.from_json((folder / 'cdra_plan.json').read_text())
    backbone = runner.model.backbone
    assert plan.blocks
    assert plan.num_trainable == sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert not stock.roles or stock.roles & {b.name.rpartition(':')[2] for b in plan.blocks}
    names = {block.name for block in plan.blocks} | {vector.name for vector in plan.vectors}
    for name, adapter in adapters(backbone).items():
        assert name in names
        # All but the first factor start at zero.
        assert all(p.any() for n, p in adapter.named_parameters() if n != 'down'), name


def check_checkpoint(runner: Runner, half: Path, last: Path, stock: Stock) -> None:
    """Without the frozen base where a file brings it back; training went on after the half."""
    states = [torch.load(path, weights_only=False)['state_dict'] for path in (half, last)]
    frozen = {
        f'backbone.{name}'
        for name, parameter in runner.model.backbone.named_parameters()
        if not parameter.requires_grad
    }
    assert frozen
    assert not frozen & set(states[1]) if stock.base else frozen <= set(states[1])
    ups = [key for key in states[1] if key.endswith('.up')]
    assert ups and not all(torch.equal(states[0][key], states[1][key]) for key in ups)


def check_merge(stock: Stock, cfg, path: Path, tested: Runner, metrics, folder: Path) -> None:
    """The merged checkpoint is the stock model's own and predicts what the adapted one does."""
    merged = merge_checkpoint(cfg, str(path))
    plain = plain_config(cfg)
    torch.save(merged.checkpoint, folder / 'merged.pth')
    runner = runner_of(plain, folder / 'merged', load_from=str(folder / 'merged.pth'))
    runner.model.load_state_dict(merged.checkpoint['state_dict'], strict=True)
    assert runner.test() == pytest.approx(metrics, rel=1e-3, abs=1e-3)
    adapted = predictions(tested)
    difference = (predictions(runner) - adapted).abs().max()
    assert difference <= 1e-4 * adapted.abs().max()
    with DefaultScope.overwrite_default_scope(stock.package):
        fresh = MODELS.build(plain.model)
    assert set(fresh.state_dict()) == set(merged.checkpoint['state_dict'])


@torch.no_grad()
def predictions(runner: Runner) -> Tensor:
    """Logits, or probabilities, of the first test batch."""
    runner.call_hook('before_test_epoch')  # puts averaged weights in
    runner.model.eval()
    samples = runner.model.test_step(next(iter(runner.test_loop.dataloader)))
    parts = [s.seg_logits.data if 'seg_logits' in s else s.pred_score for s in samples]
    return torch.stack(parts)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key
