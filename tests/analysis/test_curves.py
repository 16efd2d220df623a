"""Training curves: every number of the log, at its step."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdra_mm.analysis.curves import curve_pictures
from cdra_mm.analysis.run import Run

from .boxes import overlaps


def run_of(scalars):
    return Run(Path('run'), 'run', scalars=scalars)


def by_iteration():
    """A log as mmseg writes it: validations at iterations; ours between the others."""
    entries = [{'cdra/percent_of_backbone': 0.5, 'step': 0}]
    for step in (10, 20, 30):
        loss = {'loss': 3 / step, 'decode.loss_ce': 2 / step, 'aux.loss_ce': 1 / step}
        rates = {'lr': 1e-4 * step, 'base_lr': 1e-3 * step, 'time': 1.0, 'memory': 5}
        entries.append({**loss, **rates, 'decode.acc_seg': 50.0, 'iter': step, 'step': step})
        growth = {'cdra/relative_change/fc2': step / 100, 'cdra/rank_in_use': 1 / step}
        entries.append({**growth, 'step': step})
    entries.append({'mIoU': 41.5, 'mDice': 55.0, 'data_time': 0.1, 'time': 2.0, 'step': 30})
    return entries


def test_curves_hold_every_number_of_the_log():
    run = run_of(by_iteration())
    tables = {picture.name: picture.table for picture in curve_pictures(run)}
    loss = tables['curve_loss']
    assert tuple(loss.header) == ('iteration', 'loss', 'decode.loss_ce', 'aux.loss_ce')
    assert loss.rows == [(step, 3 / step, 2 / step, 1 / step) for step in (10, 20, 30)]
    assert tables['curve_learning_rate'].rows[1] == (20, 20e-4, 20e-3)
    assert tables['curve_metrics'].rows == [(30, 41.5, 55.0)]
    assert tuple(tables['curve_metrics'].header) == ('iteration', 'mIoU', 'mDice')
    assert tuple(tables['curve_growth'].header) == ('iteration', 'fc2')
    assert tables['curve_rank_in_use'].rows[0] == (10, 0.1)
    assert run.missing == []


def test_a_loss_of_one_part_is_one_curve():
    entries = [{'loss': 1.0, 'decode.loss_ce': 1.0, 'lr': 0.1, 'iter': 1, 'step': 1}]
    tables = {picture.name: picture.table for picture in curve_pictures(run_of(entries))}
    assert tuple(tables['curve_loss'].header) == ('iteration', 'loss')
    assert 'curve_metrics' not in tables


def test_validations_by_epoch_stand_at_their_epoch():
    entries = []
    for epoch in (1, 2, 3):
        for step in (13 * epoch - 5, 13 * epoch):
            entries.append({'loss': 1.0, 'lr': 0.1, 'epoch': epoch, 'iter': step, 'step': step})
        entries.append({'accuracy/top1': 10.0 * epoch, 'step': epoch})
    tables = {picture.name: picture.table for picture in curve_pictures(run_of(entries))}
    metrics = tables['curve_metrics']
    assert tuple(metrics.header) == ('epoch', 'accuracy/top1')
    assert metrics.rows == [(1, 10.0), (2, 20.0), (3, 30.0)]


def test_epochs_logged_by_iteration_stay_iterations():
    """A config with ``log_metric_by_epoch=False``."""
    entries = [{'loss': 1.0, 'epoch': 1, 'iter': 13, 'step': 13}, {'top1': 5.0, 'step': 13}]
    metrics = curve_pictures(run_of(entries))[1]
    assert metrics.table.header[0] == 'iteration'


def test_a_run_without_log_says_so():
    run = run_of([])
    assert curve_pictures(run) == []
    assert any('no log' in reason for reason in run.missing)


@pytest.mark.parametrize('curves', [1, 20])
def test_legends_of_curves_do_not_overlap(curves):
    parts = {f'decode_{i}.loss_of_some_kind': 1.0 + i for i in range(curves)}
    entries = [{'loss': 9.0, **parts, 'step': step} for step in (1, 2)]
    picture = curve_pictures(run_of(entries))[0]
    figure = picture.figure()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    assert overlaps(figure, texts) == []
    assert len(figure.axes[0].lines) == min(7, curves + 1 if curves > 1 else 1)
    assert len(picture.table.header) == (2 if curves == 1 else 2 + curves)
    assert ('7 are drawn' in picture.caption) == (curves > 1)
