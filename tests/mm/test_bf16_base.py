"""A run whose frozen backbone is in bfloat16: scored, trained, resumed and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from cdra_mm.core import CheckpointError, adapters
from cdra_mm.mm.export.merging import merge_checkpoint

from . import toy
from .test_backbones_runs import base_file, config

BF16 = torch.bfloat16


def narrow(folder: Path, **options: Any) -> Config:
    cdra = dict(score_dtype='bfloat16', rank_rule='count')
    cfg = config(folder, cdra=cdra, **options)
    cfg.model.backbone.dtype = 'bfloat16'
    return cfg


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bf16')
    return folder, toy.train(narrow(folder))


def test_base_stays_as_it_was_loaded_and_what_is_trained_is_fp32(run):
    folder, runner = run
    backbone = runner.model.backbone
    found = adapters(backbone)
    own = {id(p) for adapter in found.values() for p in adapter.parameters()}
    assert {type(adapter).__name__ for adapter in found.values()} == {'LowRank', 'Entries'}
    for parameter in backbone.parameters():
        assert parameter.requires_grad is (id(parameter) in own)
        assert parameter.dtype == (torch.float32 if id(parameter) in own else BF16)
    given, held = torch.load(base_file(folder)), backbone.vit.state_dict()
    assert given['cls_token'].dtype == torch.float32
    for name in given.keys() - {'pos_embed'}:  # which is resized
        assert torch.equal(held[name], given[name].bfloat16()), name


def test_merged_checkpoint_is_the_sum_rounded_once(run):
    folder, runner = run
    path = str(folder / 'run/iter_8.pth')
    merged = merge_checkpoint(runner.cfg, path).checkpoint['state_dict']
    backbone = runner.model.backbone
    changed = 0
    for name, adapter in adapters(backbone).items():
        key = name.partition(':')[0]
        parts = [a for n, a in adapters(backbone).items() if n.partition(':')[0] == key]
        module = backbone.get_submodule(key.rpartition('.')[0])
        base = module._parameters[adapter.parameter]
        wide = base.detach().double()
        if len(parts) == 1:  # those of a fused layer are rounded one after the other
            expected = adapter.added_to(wide).to(BF16)
            assert torch.equal(merged[f'backbone.{key}'], expected)
        changed += int((merged[f'backbone.{key}'] != base).sum())
    assert changed and not any('.cdra.' in key for key in merged)


def test_resumed_run_ends_as_an_uninterrupted_one(run):
    folder, runner = run
    start, there = str(folder / 'run/iter_4.pth'), str(folder / 'resumed')
    resumed = toy.train(narrow(folder, resume=True, load_from=start, work_dir=there))
    expected, own = runner.model.state_dict(), resumed.model.state_dict()
    assert own.keys() == expected.keys()
    for key, value in own.items():
        assert torch.equal(value, expected[key]), key


def test_checkpoint_of_a_bf16_base_is_refused_on_one_in_fp32(run):
    folder, _ = run
    cfg = narrow(folder, resume=True, load_from=str(folder / 'run/iter_4.pth'))
    cfg.model.backbone.dtype, cfg.work_dir = 'float32', str(folder / 'wide')
    with pytest.raises(CheckpointError, match='float32'):
        toy.train(cfg)
