"""What a segmentor predicts: the same figures as mmseg's metric, and the images that are worst."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample
from PIL import Image

from cdra_mm.analysis.class_bars import draw_class_bars
from cdra_mm.analysis.predictions import Predicted, evenly_spaced
from cdra_mm.analysis.predictions_classification import classification_pictures
from cdra_mm.analysis.predictions_segmentation import Areas, _look, segmentation_pictures
from cdra_mm.analysis.run import read_run
from cdra_mm.pictures import styled
from tests.mm.toy import config, picture, train

from .boxes import overlaps

IGNORED = 255


def sample(truth, guess, path='image.png'):
    data = SegDataSample(metainfo=dict(img_path=path))
    data.gt_sem_seg = PixelData(data=torch.as_tensor(truth)[None])
    data.pred_sem_seg = PixelData(data=torch.as_tensor(guess)[None])
    return data


def random_maps(count, classes, seed=0):
    """Pairs of truth and prediction; one class is in neither, one label is ignored."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        shape = tuple(rng.integers(5, 20, 2))
        truth = rng.integers(0, classes - 1, shape)
        guess = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, classes - 1, shape))
        truth[rng.random(shape) < 0.2] = IGNORED
        yield truth, guess


def test_areas_give_the_iou_and_dice_of_mmsegs_metric():
    classes, pairs = 6, list(random_maps(5, 6))
    total = sum(
        (Areas.of(truth, guess, classes, IGNORED) for truth, guess in pairs[1:]),
        Areas.of(*pairs[0], classes, IGNORED),
    )
    parts = [
        IoUMetric.intersect_and_union(
            torch.as_tensor(guess), torch.as_tensor(truth), classes, IGNORED
        )
        for truth, guess in pairs
    ]
    sums = [sum(part) for part in zip(*parts, strict=True)]
    expected = IoUMetric.total_area_to_metrics(*sums, ['mIoU', 'mDice'])
    np.testing.assert_allclose(total.iou, 100 * np.array(expected['IoU']), rtol=1e-6)
    np.testing.assert_allclose(total.dice, 100 * np.array(expected['Dice']), rtol=1e-6)
    assert np.isnan(total.iou[-1]) and not np.isnan(total.iou[:-1]).any()
    assert total.mean_iou == pytest.approx(100 * np.nanmean(expected['IoU']))


def looked_at(pairs, images=(), num_shown=3):
    samples = [sample(*pair, path=f'/data/{i}.png') for i, pair in enumerate(pairs)]
    cfg = Config(dict(test_evaluator=[dict(type='IoUMetric')]))
    predicted = Predicted(tuple('abcdef'), (), iter(samples), len(samples), len(samples), cfg)
    return _look(predicted, images, num_shown)


def test_worst_images_are_those_with_the_lowest_mean_iou_worst_first():
    pairs = list(random_maps(9, 6))
    every = [Areas.of(*pair, 6, IGNORED).mean_iou for pair in pairs]
    _, shown = looked_at(pairs)
    assert [entry.areas.mean_iou for entry in shown] == sorted(every)[:3]


def test_images_without_a_truth_are_never_the_worst():
    pairs = list(random_maps(2, 6))
    pairs.append((np.full((4, 4), IGNORED), np.zeros((4, 4), dtype=int)))
    _, shown = looked_at(pairs)
    assert len(shown) == 2


def test_chosen_images_are_shown_in_place_of_the_worst():
    _, shown = looked_at(list(random_maps(5, 6)), images=['3', '1'])
    assert [entry.path for entry in shown] == ['/data/1.png', '/data/3.png']


@pytest.mark.parametrize(('size', 'most'), [(10, 4), (3, None), (3, 8), (0, 2), (101, 100)])
def test_images_of_a_subset_are_different_and_spread(size, most):
    chosen = evenly_spaced(size, most)
    assert len(set(chosen)) == len(chosen) == min(size, most or size)
    assert all(0 <= position < size for position in chosen)
    gaps = np.diff(chosen)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
    assert not chosen or size - chosen[-1] <= size / len(chosen) + 1


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A work directory of a segmentor that was trained and validated; its images are there."""
    folder = tmp_path_factory.mktemp('segmentor')
    cfg = config(folder)
    cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = 2
    cfg.default_hooks.checkpoint.interval = 2
    train(cfg)
    for i in range(8):
        Image.fromarray(picture(i)[0]).save(folder / f'toy_{i}.png')
    return folder


def test_class_picture_holds_what_the_run_itself_measured(finished, monkeypatch):
    monkeypatch.chdir(finished)  # the toy data set names its images without a folder
    run, seen = read_run(finished / 'run'), []
    pictures = segmentation_pictures(run, show=lambda *counts: seen.append(counts))
    assert [picture.name for picture in pictures] == [
        'class_iou_dice', *(f'worst_image_{i}' for i in range(1, 5))
    ]  # fmt: skip
    metrics = json.loads((finished / 'run' / 'summary.json').read_text())['metrics']
    rows = pictures[0].table.rows
    for column, name in ((1, 'mIoU'), (2, 'mDice')):
        known = [row[column] for row in rows if row[column] is not None]
        assert sum(known) / len(known) == pytest.approx(metrics[name], abs=0.006)
    assert 'all 8 validation images' in pictures[0].caption
    assert seen == [(0, 8), (4, 8), (8, 8)] and run.missing == []
    figure = pictures[1].figure()
    shown = figure.axes[0].images[0].get_array()
    number = int(pictures[1].title.split('_')[1].split('.')[0])
    np.testing.assert_allclose(shown, np.asarray(_read(number)) / 255, atol=1e-6)


def _read(number):
    return picture(number)[0]


def test_subset_of_images_is_said_so(finished):
    pictures = segmentation_pictures(read_run(finished / 'run'), max_images=3, images=['toy_0'])
    assert '3 of 8 validation images, evenly spaced' in pictures[0].caption
    assert [picture.name for picture in pictures[1:]] == ['chosen_image_1']


def test_unknown_image_is_named_as_missing(finished):
    run = read_run(finished / 'run')
    segmentation_pictures(run, max_images=1, images=['elephant'])
    assert any('elephant is not among' in reason for reason in run.missing)


def test_segmentor_has_no_confusion_matrix(finished):
    run = read_run(finished / 'run')
    assert classification_pictures(run) == [] and run.missing == []


@pytest.mark.parametrize('what', ['checkpoint', 'data', 'config'])
def test_what_stands_in_the_way_is_said_and_skipped(finished, tmp_path, what):
    shutil.copytree(finished / 'run', tmp_path / 'run')
    if what == 'checkpoint':
        for file in (tmp_path / 'run').glob('*.pth'):
            file.unlink()
        (tmp_path / 'run' / 'last_checkpoint').unlink()
    run = read_run(tmp_path / 'run')
    if what == 'data':
        run.config.val_dataloader.dataset = dict(
            type='BaseSegDataset',
            data_root=str(tmp_path / 'nowhere'),
            data_prefix=dict(img_path='images', seg_map_path='labels'),
            pipeline=[],
        )
    if what == 'config':
        run.config = None
    before = len(run.missing)
    assert segmentation_pictures(run) == []
    (reason,) = run.missing[before:]
    said = {'checkpoint': 'no checkpoint', 'data': 'nowhere', 'config': 'config of the run'}
    assert reason.startswith('Predictions cannot be shown') and said[what] in reason


@pytest.mark.parametrize('classes', [3, 11, 150])
def test_class_bars_name_every_class_without_overlap(classes):
    rng = np.random.default_rng(0)
    iou = rng.random(classes) * 100
    iou[0] = np.nan
    names = [f'{i} is a class with a long name' for i in range(classes)]
    with styled():
        figure = draw_class_bars(names, iou, 'IoU', dots=iou / 2 + 50, dots_label='Dice')
        labels = figure.axes[0].get_yticklabels()
        assert len(labels) == classes and overlaps(figure, labels) == []
    best = names[int(np.nanargmax(iou))]
    shown = [label.get_text()[:-1] for label in labels]
    assert best.startswith(shown[0]) and names[0].startswith(shown[-1])
