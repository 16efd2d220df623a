"""Ranks and paired differences against slow references, and at their limits."""

from __future__ import annotations

import random
from statistics import mean

import pytest

from cdra_mm.tables.comparison import mean_ranks, paired, ranks
from tests.reference.ranking import slow_error_of_mean, slow_ranks


@pytest.mark.parametrize('seed', range(20))
def test_ranks_equal_counting_who_is_better(seed):
    draw = random.Random(seed)
    values = {str(i): float(draw.randint(0, 6)) for i in range(draw.randint(1, 12))}
    found = ranks(values)
    assert found == slow_ranks(values)
    # Whoever ties, the places are shared out whole.
    assert sum(found.values()) == len(values) * (len(values) + 1) / 2


@pytest.mark.parametrize('seed', range(10))
def test_mean_ranks_are_of_those_that_every_task_has(seed):
    draw = random.Random(seed)
    names = list('abcdef')
    values = {
        task: {n: float(draw.randint(0, 4)) for n in names if n == 'a' or draw.random() < 0.8}
        for task in ('one', 'two', 'three')
    }
    everywhere = [n for n in names if all(n in task for task in values.values())]
    by_task = [slow_ranks({n: task[n] for n in everywhere}) for task in values.values()]
    assert mean_ranks(values) == {n: mean(found[n] for found in by_task) for n in everywhere}


def test_mean_ranks_of_nothing_are_none():
    assert mean_ranks({}) == {} == mean_ranks({'one': {'a': 1.0}, 'two': {}})


@pytest.mark.parametrize('seed', range(20))
def test_paired_errors_equal_the_slow_ones(seed):
    draw = random.Random(seed)
    keys = [(task, number) for task in 'xyz' for number in range(4)]
    ours = {key: draw.gauss(70, 5) for key in keys if draw.random() < 0.9}
    theirs = {key: draw.gauss(69, 5) for key in reversed(keys) if draw.random() < 0.9}
    both = [key for key in keys if key in ours and key in theirs]
    differences = [ours[key] - theirs[key] for key in both]
    tasks = sorted({task for task, _ in both})
    of_tasks = [mean(ours[k] - theirs[k] for k in both if k[0] == task) for task in tasks]
    found = paired(ours, theirs)
    assert found is not None
    assert (found.pairs, found.tasks) == (len(both), len(tasks))
    assert found.mean == pytest.approx(mean(differences))
    assert found.error == pytest.approx(slow_error_of_mean(differences))
    assert found.task_error == pytest.approx(slow_error_of_mean(of_tasks))


def test_paired_is_of_common_runs_alone_and_has_no_error_of_one():
    ours, theirs = {('x', 0): 3.0, ('x', 1): 9.0}, {('x', 0): 1.0, ('y', 1): 5.0}
    found = paired(ours, theirs)
    assert found is not None
    assert (found.mean, found.error, found.task_error, found.pairs) == (2.0, None, None, 1)
    assert paired(ours, {('y', 0): 1.0}) is None
    # Seeds of one task say nothing about further tasks.
    found = paired(ours, {('x', 0): 1.0, ('x', 1): 5.0})
    assert found is not None and found.error == pytest.approx(1.0) and found.task_error is None
