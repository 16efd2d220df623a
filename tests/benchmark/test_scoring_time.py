"""Peers compute what ours computes; what they cannot is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cdra_mm.benchmark import peers, scoring_time
from cdra_mm.benchmark.memory import CLEAR_REFS
from cdra_mm.benchmark.peers import PEERS
from cdra_mm.benchmark.scoring_time import compare_scores, whole_matrices, worst_error
from cdra_mm.core import estimate_scores, find_targets

from .tiny import tiny_case


def peer_and_ours(key, case):
    if PEERS[key].missing():
        pytest.skip(f'{PEERS[key].package} is not installed')
    model, batch = case.make_model(), case.make_batch()
    ours = whole_matrices(estimate_scores(model, [batch], case.losses))
    with peers.quiet():
        scorer = PEERS[key].build(case, model, batch, list(ours))
        scorer()
        return scorer(), ours  # the second call shows that nothing of the first is left


@pytest.mark.parametrize('key', PEERS)
def test_peer_computes_the_scores(key, monkeypatch):
    monkeypatch.setattr(peers, 'VMAP_CHUNK', 2)  # three samples: the last chunk is smaller
    found, ours = peer_and_ours(key, tiny_case())
    assert all(found[path].shape == ours[path].shape for path in found)
    assert worst_error(found, ours) < 1e-5
    linear = {path for path in ours if '.norm' not in path}
    assert set(found) == (linear if key == 'backpack' else set(ours))


@pytest.mark.parametrize('key', PEERS)
def test_peer_computes_the_scores_under_autocast(key):
    if key == 'backpack':
        pytest.skip('BackPACK cannot: it mixes the fp32 input with bf16 gradients')
    found, ours = peer_and_ours(key, tiny_case(dtype='bf16'))
    assert worst_error(found, ours) < scoring_time.TOLERANCE['bf16']


def test_worst_error_is_relative_to_the_largest_score():
    expected = {'a': torch.tensor([2.0, 10.0]), 'b': torch.tensor([1.0])}
    assert worst_error({'a': torch.tensor([3.0, 10.0])}, expected) == pytest.approx(0.1)
    assert worst_error({'b': torch.tensor([0.5])}, expected) == pytest.approx(0.5)


def test_record_has_every_ratio_and_agreement():
    record = compare_scores(tiny_case(), peers=['loop'], memory=False)
    assert list(record['candidates']) == ['backward', 'ours', 'batch-1 loop']
    assert record['candidates']['backward']['ratio_vs_backward'] == 1.0
    loop = record['candidates']['batch-1 loop']
    assert loop['covers'] == 1.0 and loop['max_relative_error'] < 1e-5
    assert len(loop['seconds_all']) == 2 and len(loop['ratio_vs_backward_quartiles']) == 2
    assert record['skipped'] == {}


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason='needs Linux /proc')
def test_memory_is_measured_in_a_process_of_each_candidate():
    record = compare_scores(tiny_case(repeats=1), peers=[])
    for entry in record['candidates'].values():
        assert entry['peak_bytes_above_rest'] >= 0
    ours = record['candidates']['ours']
    assert ours['scratch_bytes'] == (
        ours['peak_bytes_above_rest']
        - ours['score_bytes']
        - record['candidates']['backward']['peak_bytes_above_rest']
    )


def wrong(build, change):
    """A peer whose scores are changed."""

    def make(*arguments):
        scorer = build(*arguments)
        return lambda: change(scorer())

    return make


def replaced(monkeypatch, key, **changes):
    monkeypatch.setitem(PEERS, key, replace(PEERS[key], **changes))


def test_peer_that_computes_something_else_is_not_compared(monkeypatch):
    twice = wrong(PEERS['loop'].build, lambda s: {k: 2 * v for k, v in s.items()})
    replaced(monkeypatch, 'loop', build=twice)
    record = compare_scores(tiny_case(), peers=['loop'], memory=False)
    assert 'batch-1 loop' not in record['candidates']
    assert 'differ from ours by 1.0e+00' in record['skipped']['batch-1 loop']


def test_peer_that_is_missing_is_skipped_with_a_line(monkeypatch):
    replaced(monkeypatch, 'opacus', module='no_such_module')
    record = compare_scores(tiny_case(repeats=1), peers=['opacus'], memory=False)
    assert record['skipped'] == {'Opacus': 'opacus is not installed: pip install opacus'}
    assert list(record['candidates']) == ['backward', 'ours']


def test_peer_that_runs_out_of_memory_leaves_the_others(monkeypatch):
    def build(*_):
        raise torch.OutOfMemoryError('CUDA out of memory')

    replaced(monkeypatch, 'vmap', build=build)
    record = compare_scores(tiny_case(), peers=['vmap', 'loop'], memory=False)
    assert record['skipped'] == {'vmap(grad)': 'out of memory at batch 3'}
    assert list(record['candidates']) == ['backward', 'ours', 'batch-1 loop']


def test_peer_that_fails_is_skipped_with_its_reason(monkeypatch):
    def build(*_):
        raise RuntimeError('expected Float\nbut found BFloat16')

    replaced(monkeypatch, 'vmap', build=build)
    record = compare_scores(tiny_case(repeats=1), peers=['vmap'], memory=False)
    assert record['skipped'] == {'vmap(grad)': 'fails: expected Float'}


def test_candidates_leave_the_model_as_it_was():
    case = tiny_case()
    model, batch = case.make_model(), case.make_batch()
    paths = list(dict.fromkeys(t.path for t in find_targets(model).values()))
    with peers.quiet():
        PEERS['vmap'].build(case, model, batch, paths)()
    assert all(p.grad is None for p in model.parameters())
    assert all(m.fused_attn for m in model.modules() if hasattr(m, 'fused_attn'))
