"""Which labels a head takes, what it makes of others, and what labels say about mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS
from torch import nn
from torch.nn import functional

from cdra_mm.core import DataError
from cdra_mm.mm.data_check.config_datasets import in_scope
from cdra_mm.mm.data_check.label_rule import LabelRule, label_rule
from cdra_mm.mm.data_check.likely_mistakes import likely_mistakes

from . import toy


@pytest.mark.parametrize(
    ('head', 'limit', 'ignored'),
    [
        (dict(type='FCNHead', num_classes=4), 4, 255),
        (dict(type='FCNHead', num_classes=4, ignore_index=11), 4, 11),
        (dict(type='FCNHead', num_classes=2, out_channels=1), None, 255),
        (
            dict(type='FCNHead', num_classes=1, loss_decode=dict(use_sigmoid=True)),
            2,
            255,
        ),
        (dict(type='mmpretrain.LinearClsHead', num_classes=3), 3, None),
    ],
)
def test_label_rule_of_a_config_uses_the_defaults_of_its_class(head, limit, ignored):
    with in_scope(Config(dict(default_scope='mmseg'))):
        rule = label_rule(head)
    assert (rule.limit, rule.ignored) == (limit, ignored)


def test_label_rule_of_a_module_is_that_of_its_config():
    head = nn.Module()
    head.num_classes, head.out_channels, head.ignore_index = 2, 1, None
    head.loss_decode = nn.Module()
    assert label_rule(head) == LabelRule(2, None, None)
    head.loss_decode.use_sigmoid = True
    assert label_rule(head) == LabelRule(2, 2, None)
    assert label_rule(nn.Module()) is None


def test_likely_mistakes_are_silent_on_a_few_rare_classes_of_many():
    rule = LabelRule(150, 150, 255)
    counts = dict.fromkeys(range(120), 5)
    assert likely_mistakes(counts, rule, what='x', is_whole=False) == []
    assert '30 of 150 classes' in likely_mistakes(counts, rule, what='x')[0]


@MODELS.register_module(force=True)
class HeightHead(FCNHead):
    """A regression on a float map."""

    def loss_by_feat(self, seg_logits, batch_data_samples):
        heights = torch.stack([sample.gt_sem_seg.data for sample in batch_data_samples])
        size = heights.shape[2:]
        return dict(loss_height=functional.mse_loss(self.resized(seg_logits, size), heights))

    @staticmethod
    def resized(maps, size):
        return functional.interpolate(maps, size=tuple(size), mode='bilinear')


def floats(cfg):
    """Validation compares class ids: it is left out."""
    for key in ('val', 'test'):
        for part in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'{key}_{part}'] = None
    cfg.train_cfg.pop('val_interval')
    cfg.train_cfg.max_iters = 2
    return cfg


class FloatData(toy.ToyData):
    """Toy data whose label maps are floats."""

    def prepare_data(self, idx):
        packed = super().prepare_data(idx)
        label = packed['data_samples'].gt_sem_seg
        label.data = label.data.float() / 3
        return packed


def test_regression_on_a_float_map_trains_and_is_scored_by_its_own_loss(tmp_path):
    cfg = floats(toy.config(tmp_path))
    cfg.model.decode_head.update(type='HeightHead', num_classes=1, threshold=0.3)
    cfg.train_dataloader.dataset.type = FloatData
    assert toy.train(cfg).iter == 2


def test_float_map_under_a_classifier_names_the_image(tmp_path):
    cfg = floats(toy.config(tmp_path))
    cfg.train_dataloader.dataset.type = FloatData
    with pytest.raises(DataError, match=r'toy_\d+.png has labels of the type torch.float32'):
        toy.train(cfg)


def test_head_with_one_class_and_a_sigmoid_trains(tmp_path, monkeypatch):
    picture = toy.picture
    monkeypatch.setattr(toy, 'picture', lambda i: (picture(i)[0], np.minimum(picture(i)[1], 1)))
    cfg = toy.config(tmp_path)
    sigmoid = dict(type='CrossEntropyLoss', use_sigmoid=True)
    cfg.model.decode_head.update(num_classes=1, threshold=0.3, loss_decode=sigmoid)
    cfg.train_cfg.max_iters = 2
    assert toy.train(cfg).iter == 2


def test_head_with_one_class_names_an_image_whose_labels_do_not_fit(tmp_path):
    cfg = toy.config(tmp_path)
    sigmoid = dict(type='CrossEntropyLoss', use_sigmoid=True)
    cfg.model.decode_head.update(num_classes=1, threshold=0.3, loss_decode=sigmoid)
    with pytest.raises(DataError, match=r'toy_\d+.png has the label ids \[[23]'):
        toy.train(cfg)


def test_scoring_warns_of_labels_that_are_mostly_ignored(tmp_path, monkeypatch):
    picture = toy.picture

    def binary(index):
        image, labels = picture(index)
        return image, np.where(labels, 255, 0).astype(np.uint8)

    monkeypatch.setattr(toy, 'picture', binary)
    cfg = toy.config(tmp_path)
    cfg.train_cfg.max_iters = 1
    runner = toy.Runner.from_cfg(cfg)
    said = []
    monkeypatch.setattr(runner.logger, 'warning', lambda text, *_, **__: said.append(str(text)))
    runner.train()
    assert any('in masks of 0 and 255 the foreground is ignored' in text for text in said)


@pytest.mark.parametrize('average', [False, True])
def test_labels_that_are_all_ignored_are_named_and_not_the_backbone(tmp_path, monkeypatch, average):
    picture = toy.picture
    monkeypatch.setattr(toy, 'picture', lambda i: (picture(i)[0], np.full_like(picture(i)[1], 255)))
    cfg = toy.config(tmp_path)
    cfg.model.decode_head.loss_decode = dict(type='CrossEntropyLoss', avg_non_ignore=average)
    with pytest.raises(DataError, match='none of the training samples drawn .* has a labelled'):
        toy.train(cfg)
