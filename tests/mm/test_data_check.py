"""Wrong data are told before a run begins, by the check of every file, and by name in a run."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from PIL import Image

from cdra_mm.core import CDRAError, ConfigError, DataError
from cdra_mm.mm.checkpoints.resuming import with_resume_advice
from cdra_mm.mm.data_check import check_config_data, check_data
from cdra_mm.mm.data_check.watch import WatchedCollate, WatchedPipeline
from cdra_mm.mm.launch import build_runner

from .data_folders import CLASSIFICATION, SEGMENTATION, Case, sets

MAKERS = [(case, sets.segmentation) for case in SEGMENTATION]
MAKERS += [(case, sets.classification) for case in CLASSIFICATION]


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
    report = check_config_data(sets.segmentation(tmp_path), workers=0)
    train, val = report.datasets  # validation and test read the same, which is read once
    assert (train.split, train.samples) == ('train', sets.TRAIN)
    assert (val.split, val.samples) == ('val, test', sets.VAL)
    size = (sets.HEIGHT, sets.WIDTH)
    assert train.sizes == {size: sets.TRAIN}
    assert train.tally.pixels.total() == sets.TRAIN * size[0] * size[1]
    assert train.tally.images == dict.fromkeys(range(3), sets.TRAIN)
    assert report.good


def test_check_in_processes_finds_what_one_finds(tmp_path):
    cfg = sets.segmentation(tmp_path)
    sets.image(tmp_path).write_text('no picture')
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
    cfg = sets.segmentation(tmp_path)
    cfg.train_dataloader.num_workers = workers
    cfg.default_hooks.cdra.num_samples = 6
    sets.image(tmp_path).write_text('no picture')
    with pytest.raises(DataError) as caught:
        build_runner(cfg).train()
    assert 'images/train/1.jpg' in str(caught.value)
    assert f'data check {cfg.filename or "CONFIG"}' in str(caught.value)


@pytest.mark.filterwarnings('ignore')
def test_run_without_the_hook_names_a_label_out_of_range(tmp_path):
    cfg = sets.segmentation(tmp_path)
    cfg.default_hooks.pop('cdra')
    labels = np.full((sets.HEIGHT, sets.WIDTH), 7, np.uint8)
    Image.fromarray(labels).save(sets.mask(tmp_path, 3))
    with pytest.raises(DataError, match=r'3.png .*has the label ids \[7\]'):
        build_runner(cfg).train()


@pytest.mark.filterwarnings('ignore')
def test_run_names_a_validation_mask_of_another_size(tmp_path):
    cfg = sets.segmentation(tmp_path)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    small = np.zeros((8, 8), np.uint8)
    Image.fromarray(small).save(sets.mask(tmp_path, 1, 'val'))
    with pytest.raises(DataError, match=r'masks/val/1.png is 8 x 8 pixels, but its image'):
        build_runner(cfg).train()


@pytest.mark.filterwarnings('ignore')
def test_run_names_images_that_do_not_fit_into_one_batch(tmp_path):
    cfg = sets.segmentation(tmp_path)
    cfg.train_dataloader.dataset.pipeline[2].crop_size = (20, 20)
    Image.fromarray(sets.pixels(1)[0][:18, :18]).save(sets.image(tmp_path))
    Image.fromarray(sets.pixels(1)[1][:18, :18]).save(sets.mask(tmp_path))
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


def test_data_that_fail_late_say_how_to_go_on(tmp_path):
    checkpoint = tmp_path / 'iter_4.pth'
    with pytest.raises(DataError) as caught, with_resume_advice(tmp_path):
        raise DataError('a.jpg is broken')
    assert str(caught.value) == 'a.jpg is broken'
    checkpoint.write_bytes(b'x')
    (tmp_path / 'last_checkpoint').write_text(str(checkpoint))
    with pytest.raises(DataError, match=r'a.jpg is broken; the last checkpoint is .*--resume'):
        with with_resume_advice(tmp_path):
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
