"""Wrong data are told before a run begins, by the check of every file, and by name in a run."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS
from PIL import Image
from torch import nn
from torch.nn import functional

from cdra_mm.core import CDRAError, ConfigError, DataError
from cdra_mm.mm.checkpoints.resuming import told_how_to_resume
from cdra_mm.mm.data_check import check_config_data, check_data
from cdra_mm.mm.data_check.causes import likely_mistakes
from cdra_mm.mm.data_check.label_rule import LabelRule, label_rule
from cdra_mm.mm.data_check.places import in_scope
from cdra_mm.mm.data_check.watch import WatchedCollate, WatchedPipeline
from cdra_mm.mm.launch import build_runner

from . import toy, wrong_folders
from .wrong_folders import CLASSIFICATION, SEGMENTATION, Case

MAKERS = [(case, wrong_folders.segmentation) for case in SEGMENTATION]
MAKERS += [(case, wrong_folders.classification) for case in CLASSIFICATION]


def test_table_of_wrong_folders_is_long_and_names_each_once():
    names = [case.name for case, _ in MAKERS]
    assert len(names) == len(set(names)) >= 80


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(('case', 'make'), MAKERS, ids=[case.name for case, _ in MAKERS])
def test_folder_gets_what_its_case_says(case: Case, make, tmp_path):
    cfg = make(tmp_path)
    case.change(tmp_path, cfg)
    try:
        report = check_config_data(cfg, workers=0, progress=lambda done, total: None)
        text, good = '\n'.join([*report.lines(), report.problem()]), report.good
    except CDRAError as error:
        text, good = str(error), False
    assert good == (not case.found), text
    assert case.found in text
    if case.early:
        with pytest.raises(CDRAError) as caught:
            check_data(cfg, 'train')
        assert case.early in str(caught.value)
        assert '\n' not in str(caught.value)
        return
    said = check_data(cfg, 'train')
    assert bool(said) == bool(case.warned), said
    assert case.warned in '\n'.join(said)


def test_check_counts_samples_classes_and_sizes(tmp_path):
    report = check_config_data(wrong_folders.segmentation(tmp_path), workers=0)
    train, val = report.places  # validation and test read the same, which is read once
    assert (train.split, train.samples) == ('train', wrong_folders.TRAIN)
    assert (val.split, val.samples) == ('val, test', wrong_folders.VAL)
    size = (wrong_folders.HEIGHT, wrong_folders.WIDTH)
    assert train.sizes == {size: wrong_folders.TRAIN}
    assert train.tally.pixels.total() == wrong_folders.TRAIN * size[0] * size[1]
    assert train.tally.images == dict.fromkeys(range(3), wrong_folders.TRAIN)
    assert report.good


def test_check_in_processes_finds_what_one_finds(tmp_path):
    cfg = wrong_folders.segmentation(tmp_path)
    wrong_folders.image(tmp_path).write_text('no picture')
    seen = []
    one, two = (
        check_config_data(cfg, workers=n, progress=lambda *counts: seen.append(counts))
        for n in (0, 2)
    )
    assert one.faults == two.faults and len(one.faults) == 1
    assert one.lines() == two.lines()
    assert seen[-1] == (9, 9)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('workers', [0, 1])
def test_run_ends_with_the_name_of_the_file(tmp_path, workers):
    cfg = wrong_folders.segmentation(tmp_path)
    cfg.train_dataloader.num_workers = workers
    cfg.default_hooks.cdra.num_samples = 6
    wrong_folders.image(tmp_path).write_text('no picture')
    with pytest.raises(DataError) as caught:
        build_runner(cfg).train()
    assert 'images/train/1.jpg' in str(caught.value)
    assert f'--config {cfg.filename or "CONFIG"} --check' in str(caught.value)


@pytest.mark.filterwarnings('ignore')
def test_run_without_the_hook_names_a_label_out_of_range(tmp_path):
    cfg = wrong_folders.segmentation(tmp_path)
    cfg.default_hooks.pop('cdra')
    labels = np.full((wrong_folders.HEIGHT, wrong_folders.WIDTH), 7, np.uint8)
    Image.fromarray(labels).save(wrong_folders.mask(tmp_path, 3))
    with pytest.raises(DataError, match=r'3.png .*has the label ids \[7\]'):
        build_runner(cfg).train()


@pytest.mark.filterwarnings('ignore')
def test_run_names_a_validation_mask_of_another_size(tmp_path):
    cfg = wrong_folders.segmentation(tmp_path)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    small = np.zeros((8, 8), np.uint8)
    Image.fromarray(small).save(wrong_folders.mask(tmp_path, 1, 'val'))
    with pytest.raises(DataError, match=r'masks/val/1.png is 8 x 8 pixels, but its image'):
        build_runner(cfg).train()


@pytest.mark.filterwarnings('ignore')
def test_run_names_images_that_do_not_fit_into_one_batch(tmp_path):
    cfg = wrong_folders.segmentation(tmp_path)
    cfg.train_dataloader.dataset.pipeline[2].crop_size = (20, 20)
    Image.fromarray(wrong_folders.pixels(1)[0][:18, :18]).save(wrong_folders.image(tmp_path))
    Image.fromarray(wrong_folders.pixels(1)[1][:18, :18]).save(wrong_folders.mask(tmp_path))
    with pytest.raises(ConfigError, match=r'1.jpg 18 x 18 .*data_preprocessor.size=\(20, 20\)'):
        build_runner(cfg).train()


def test_watched_pipeline_does_what_the_pipeline_does():
    steps = Compose([lambda data: {**data, 'a': 1}, lambda data: {**data, 'b': data['a'] + 1}])
    watched = WatchedPipeline(steps, 'train data', '')
    assert watched({'img_path': 'x'}) == steps({'img_path': 'x'})
    assert watched.transforms is steps.transforms
    assert WatchedPipeline(Compose([lambda data: None]), 'train data', '')({}) is None
    pickle.dumps(WatchedPipeline(Compose([]), 'train data', ''))  # for workers that are spawned


def test_watched_collate_names_two_images():
    batch = [dict(inputs=torch.zeros(3, n, 8)) for n in (8, 9)]
    collate = WatchedCollate(default_collate, 'train data', '')
    assert collate(batch[:1])['inputs'].shape == (1, 3, 8, 8)
    with pytest.raises(DataError, match=r'image 0 gives 8 x 8 .* image 1 9 x 8'):
        collate(batch)


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


def test_data_that_fail_late_say_how_to_go_on(tmp_path):
    checkpoint = tmp_path / 'iter_4.pth'
    with pytest.raises(DataError) as caught, told_how_to_resume(tmp_path):
        raise DataError('a.jpg is broken')
    assert str(caught.value) == 'a.jpg is broken'
    checkpoint.write_bytes(b'x')
    (tmp_path / 'last_checkpoint').write_text(str(checkpoint))
    with pytest.raises(DataError, match=r'a.jpg is broken; the last checkpoint is .*--resume'):
        with told_how_to_resume(tmp_path):
            raise DataError('a.jpg is broken')


def test_shipped_data_are_good(shared):
    """Real images of four kinds, through a config that reads them."""
    for name, classes in (('vnc_em', 5), ('cwfid', 3)):
        cfg = wrong_config(shared / 'data' / name, classes)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert check_config_data(cfg, workers=0).problem() == ''


def wrong_config(root, classes):
    """A config that has a validation set and a head, and no more."""
    names = tuple(map(str, range(classes)))
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(root),
        data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
        metainfo=dict(classes=names),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
    )
    model = dict(decode_head=dict(type='FCNHead', num_classes=classes))
    return Config(
        dict(default_scope='mmseg', model=model, val_dataloader=dict(batch_size=1, dataset=dataset))
    )
