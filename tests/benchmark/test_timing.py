"""Candidates in turn, ratios within a round, and what runs out of memory."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.benchmark.timing import Ratio, add_ratio, is_out_of_memory, measure, paired_ratio


def run_once(candidate, device):
    candidate()
    return 1.0


def orders(seed, rounds=8):
    """The order in which the candidates ran, one string a round."""
    calls = []
    candidates = {name: (lambda name=name: calls.append(name)) for name in 'abc'}
    measure(candidates, device='cpu', repeats=rounds, warmup=0, seed=seed, clock=run_once)
    return [''.join(calls[i : i + 3]) for i in range(0, len(calls), 3)]


def test_measure_runs_every_candidate_once_a_round_in_changing_order():
    found = orders(seed=0)
    assert len(found) == 8 and all(sorted(order) == list('abc') for order in found)
    assert len(set(found)) > 1
    assert found == orders(seed=0) != orders(seed=1)


def test_measure_leaves_warmup_out():
    times = iter(range(100))
    found = measure(
        {'a': lambda: None}, device='cpu', repeats=3, warmup=2, clock=lambda *_: next(times)
    )
    assert found.seconds == {'a': [2, 3, 4]}


def test_measure_takes_a_time_on_the_cpu():
    found = measure({'a': lambda: torch.ones(3)}, device='cpu', repeats=2, warmup=0)
    assert len(found.seconds['a']) == 2 and min(found.seconds['a']) > 0


def test_measure_goes_on_without_what_ran_out_of_memory():
    def large():
        raise torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate')

    candidates = {'large': large, 'small': lambda: None}
    found = measure(candidates, device='cpu', repeats=2, warmup=1, clock=run_once)
    assert found.seconds == {'small': [1.0, 1.0]}
    assert list(found.failed) == ['large'] and is_out_of_memory(found.failed['large'])


def test_measure_keeps_a_bug_a_bug():
    def broken():
        raise RuntimeError('shapes differ')

    with pytest.raises(RuntimeError, match='shapes differ'):
        measure({'a': broken}, device='cpu', repeats=1, warmup=0)
    steps = {'a': broken, 'b': lambda: None}
    found = measure(steps, device='cpu', repeats=1, warmup=0, keep_going=True)
    assert list(found.seconds) == ['b'] and str(found.failed['a']) == 'shapes differ'


def test_paired_ratio_is_taken_within_each_round():
    # The machine was three times slower in the second round: the ratios do not see it.
    assert paired_ratio([2.0, 6.0, 2.0], [1.0, 3.0, 1.0]) == Ratio(2.0, 2.0, 2.0)
    assert paired_ratio([3.0], [2.0]) == Ratio(1.5, 1.5, 1.5)
    assert paired_ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5) == Ratio(3.0, 2.0, 4.0)


def test_ratio_of_a_record_has_spread_and_fastest():
    entry = {}
    add_ratio(entry, 'base', [3.0, 4.0, 9.0], [2.0, 4.0, 3.0])
    assert entry == {
        'ratio_vs_base': 1.5,
        'ratio_vs_base_quartiles': [1.25, 2.25],
        'ratio_vs_base_of_fastest': 1.5,
    }


def test_out_of_memory_is_told_from_other_errors():
    text = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 4 bytes"
    assert is_out_of_memory(RuntimeError(text)) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError('size mismatch'))
    assert not is_out_of_memory(ValueError('out of memory'))


def test_out_of_memory_of_the_cpu_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
