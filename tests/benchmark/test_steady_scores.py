"""Scores in steady state: what a batch more costs, without what is done once."""

from __future__ import annotations

import pytest

from cdra_mm.benchmark import candidates, steady_scores
from cdra_mm.benchmark.steady_scores import ONE_MORE, compare_steady_scores
from cdra_mm.benchmark.timing import Measurement

from .tiny import tiny_case


def test_batch_more_leaves_the_setup_out(monkeypatch):
    """Setup of 10 s, and 3 s a batch, of which a backward takes 2."""
    seen = {}

    def scored(model, batches, losses):
        return len(batches)

    def clocked(runs, **options):
        seen.update({name: run() for name, run in runs.items() if name.startswith('ours')})
        times = {'backward': [2.0, 2.0]} | {n: [10 + 3.0 * k] * 2 for n, k in seen.items()}
        return Measurement(times)

    monkeypatch.setattr(steady_scores, 'estimate_scores', scored)
    monkeypatch.setattr(candidates, 'measure', clocked)
    record = compare_steady_scores(tiny_case(), batches=4)
    assert seen == {'ours, 1 batch': 1, 'ours, 4 batches': 4}
    found = record['candidates']
    assert found[ONE_MORE]['seconds'] == 3.0 and found[ONE_MORE]['ratio_vs_backward'] == 1.5
    assert found['ours, 1 batch']['ratio_vs_backward'] == 6.5  # the whole, setup included


def test_steady_scores_run():
    record = compare_steady_scores(tiny_case(), batches=2)
    found = record['candidates']
    assert list(found) == ['backward', 'ours, 1 batch', 'ours, 2 batches', ONE_MORE]
    more = found['ours, 2 batches']['seconds_all'][0] - found['ours, 1 batch']['seconds_all'][0]
    assert found[ONE_MORE]['seconds_all'][0] == pytest.approx(more)
