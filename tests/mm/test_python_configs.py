"""Configs in pure Python: types that are classes, ``default_scope = None``."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.models import ClsDataPreprocessor, ImageClassifier, LinearClsHead, VisionTransformer

from cdra_mm import CDRAHook
from cdra_mm.core import adapters
from cdra_mm.mm.export.merging import merge_checkpoint

from . import toy

LAZY = """
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop
from mmpretrain.models import ClsDataPreprocessor, ImageClassifier, LinearClsHead, VisionTransformer
from torch.optim import AdamW

from cdra_mm import CDRAHook
from tests.mm.toy import ToyData

default_scope = None
model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(type=ClsDataPreprocessor),
    backbone=dict(
        type=VisionTransformer,
        arch=dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64),
        img_size=32,
        patch_size=8,
        init_cfg=dict(type='Pretrained', checkpoint='BASE'),
    ),
    head=dict(type=LinearClsHead, in_channels=32, num_classes=4),
)
train_dataloader = dict(
    batch_size=4,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=ToyData, task='cls'),
)
train_cfg = dict(type=IterBasedTrainLoop, max_iters=2)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-3))
default_hooks = dict(
    checkpoint=dict(type=CheckpointHook, interval=2, by_epoch=False),
    cdra=dict(type=CDRAHook, budget_percent=5.0, num_samples=4),
)
log_level = 'WARNING'
"""


def lazy(folder) -> Config:
    path = folder / 'lazy.py'
    text = LAZY.replace('BASE', toy.base_file(folder))
    path.write_text(text)
    return Config.fromfile(path)


def with_classes(folder) -> Config:
    """An ordinary config into which a program has put classes."""
    cfg = toy.config(folder, 'cls')
    cfg.train_cfg.max_iters, cfg.default_hooks.checkpoint.interval = 2, 2
    cfg.default_hooks.cdra.type = CDRAHook
    cfg.model.update(type=ImageClassifier)
    cfg.model.data_preprocessor.update(type=ClsDataPreprocessor)
    cfg.model.backbone.update(type=VisionTransformer)
    cfg.model.head.update(type=LinearClsHead)
    return cfg


@pytest.mark.parametrize('kind', [lazy, with_classes])
def test_the_dumped_config_is_read_again_and_its_checkpoint_merges(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())  # as in a fresh process
    cfg = kind(tmp_path)
    cfg.work_dir = str(tmp_path / 'run')
    runner = toy.train(cfg)
    (dumped,) = (tmp_path / 'run').glob('*.py')
    again = Config.fromfile(dumped)
    assert again.default_hooks.cdra.budget_percent == 5.0
    assert again.default_scope == cfg.default_scope
    again.work_dir = str(tmp_path / 'again')
    assert any(isinstance(hook, CDRAHook) for hook in Runner.from_cfg(again).hooks)
    checkpoint = str(tmp_path / 'run/iter_2.pth')
    expected = len(adapters(runner.model.backbone))
    for config in (kind(tmp_path), again):
        assert merge_checkpoint(config, checkpoint).num_adapters == expected > 0
