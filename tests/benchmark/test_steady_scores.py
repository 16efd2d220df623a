"""Scores in steady state: what a batch more costs, without what is done once."""

from __future__ import annotations

import pytest

from cdra_mm.benchmark import candidates, steady_scores
from cdra_mm.benchmark.steady_scores import MEAN_MORE, ONE_MORE, compare_steady_scores
from cdra_mm.benchmark.timing import Measurement

from .tiny import tiny_case


def test_batch_more_leaves_the_setup_out(monkeypatch):
    """Setup of 10 s, and 3 s a batch, or 2.5 for mean gradients, of which a backward takes 2."""
    seen = {}

    def scored(model, batches, losses):
        return len(batches)

    def clocked(runs, **options):
        seen.update({name: run() for name, run in runs.items() if name != 'backward'})
        each = {name: 3.0 if name.startswith('ours') else 2.5 for name in seen}
        times = {'backward': [2.0, 2.0]} | {n: [10 + each[n] * k] * 2 for n, k in seen.items()}
        return Measurement(times)

    monkeypatch.setattr(steady_scores, 'estimate_scores', scored)
    monkeypatch.setattr(steady_scores, 'mean_gradients', scored)
    monkeypatch.setattr(candidates, 'measure', clocked)
    record = compare_steady_scores(tiny_case(), batches=4)
    assert [*seen.items()] == [
        ('ours, 1 batch', 1),
        ('ours, 4 batches', 4),
        ('mean gradients, 1 batch', 1),
        ('mean gradients, 4 batches', 4),
    ]
    found = record['candidates']
    assert found[ONE_MORE]['seconds'] == 3.0 and found[ONE_MORE]['ratio_vs_backward'] == 1.5
    assert found[MEAN_MORE]['seconds'] == 2.5 and found[MEAN_MORE]['ratio_vs_backward'] == 1.25
    assert found['ours, 1 batch']['ratio_vs_backward'] == 6.5  # the whole, setup included


def test_steady_scores_run():
    record = compare_steady_scores(tiny_case(), batches=2)
    found = record['candidates']
    runs = [f'{what}, {n}' for what in ('ours', 'mean gradients') for n in ('1 batch', '2 batches')]
    assert list(found) == ['backward', *runs, ONE_MORE, MEAN_MORE]
    for more, one, two in ((ONE_MORE, *runs[:2]), (MEAN_MORE, *runs[2:])):
        difference = found[two]['seconds_all'][0] - found[one]['seconds_all'][0]
        assert found[more]['seconds_all'][0] == pytest.approx(difference)
