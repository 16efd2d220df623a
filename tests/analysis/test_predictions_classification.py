"""What a classifier predicts: a confusion matrix of its own validation images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cdra_mm.analysis.predictions_classification import (
    _confusion,
    _draw_confusion,
    classification_pictures,
)
from cdra_mm.analysis.predictions_segmentation import segmentation_pictures
from cdra_mm.analysis.run import read_run
from cdra_mm.pictures import styled
from tests.mm.toy import config, train

from .boxes import overlaps


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A work directory of a classifier that was trained and validated."""
    folder = tmp_path_factory.mktemp('classifier')
    cfg = config(folder, 'cls')
    cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = 2
    cfg.default_hooks.checkpoint.interval = 2
    train(cfg)
    return folder / 'run'


def test_confusion_matrix_holds_what_the_run_itself_measured(finished):
    run = read_run(finished)
    confusion, right = classification_pictures(run)
    metrics = json.loads((finished / 'summary.json').read_text())['metrics']
    counts = {(row[0], row[1]): row[2] for row in confusion.table.rows}
    assert sum(counts.values()) == 8
    on_diagonal = sum(n for (true, guess), n in counts.items() if true == guess)
    assert 100 * on_diagonal / 8 == pytest.approx(metrics['accuracy/top1'])
    # The toy data set has its four classes in turn: two images each.
    for name, share, images in right.table.rows:
        assert images == 2 and share == pytest.approx(50 * counts.get((name, name), 0))
    assert run.missing == [] and segmentation_pictures(run) == [] and run.missing == []


def test_predictions_need_neither_a_visualizer_nor_the_metrics(finished):
    """Nor whatever else a config may lack that predicting does not use."""
    run = read_run(finished)
    whole, _ = classification_pictures(run)
    for key in ('visualizer', 'val_evaluator', 'train_cfg', 'test_cfg', 'log_processor', 'env_cfg'):
        run.config.pop(key, None)
    bare, _ = classification_pictures(run)
    assert run.missing == [] and bare.table.rows == whole.table.rows


def test_confusion_table_and_caption_are_those_of_the_counts():
    counts = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    picture = _confusion(counts, ['cat', 'dog', 'cow'], 'all 8 validation images')
    assert picture.table.rows == [
        ('cat', 'cat', 3, 75.0),
        ('cat', 'dog', 1, 25.0),
        ('cow', 'cat', 2, 50.0),
        ('cow', 'cow', 2, 50.0),
    ]
    assert 'All 8 validation images: 62.5 % right' in picture.caption
    assert 'cow taken for cat (2 of 4)' in picture.caption


@pytest.mark.parametrize('classes', [2, 12, 45, 102, 397])
def test_confusion_names_do_not_overlap(classes):
    counts = np.diag(np.arange(classes))
    names = [f'quite a long name {i}' for i in range(classes)]
    with styled():
        figure = _draw_confusion(counts, names)
        axes = figure.axes[0]
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert min(classes, 20) <= len(labels) <= 45 or len(labels) == classes
            assert overlaps(figure, labels) == []
    shown = axes.images[0].get_array()
    assert shown.shape == (classes, classes) and shown[1, 1] == 100 and shown[0, 0] == 0
