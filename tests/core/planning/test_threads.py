"""Planning runs on one thread, and leaves every thread with the number that it found."""

from __future__ import annotations

import threading

import pytest
import torch

from cdra_mm.core import make_plan
from cdra_mm.core.planning.threads import one_thread


@pytest.fixture(autouse=True)
def three():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def numbers():
    """The number of the calling thread, and what a new one takes over."""
    found = [torch.get_num_threads()]
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found


def test_one_thread_is_one_until_it_ends():
    with one_thread():
        assert numbers() == [1, 1]
    assert numbers() == [3, 3]


def test_one_thread_nested_ends_with_the_outer_one():
    with one_thread():
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert numbers() == [3, 3]


def test_one_thread_ends_with_an_error():
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert numbers() == [3, 3]


@pytest.mark.parametrize('first_out', ['main', 'other'])
def test_one_thread_of_two_threads_that_overlap(first_out):
    inside, leave, left = (threading.Event() for _ in range(3))
    found = []

    def other():
        with one_thread():
            inside.set()
            assert leave.wait(20)
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())
        left.set()

    thread = threading.Thread(target=other)
    with one_thread():
        thread.start()
        assert inside.wait(20)
        if first_out == 'other':
            leave.set()
            assert left.wait(20)
            assert torch.get_num_threads() == 1
    if first_out == 'main':
        assert torch.get_num_threads() == 3
        leave.set()
    thread.join()
    assert found == [1, 3]
    assert numbers() == [3, 3]


def test_two_threads_plan_at_once_what_each_plans_alone():
    generator = torch.Generator().manual_seed(0)
    problems = [
        {f'{i}.weight': torch.rand(64, 48, generator=generator) for i in range(4)} for _ in range(2)
    ]
    alone = [make_plan(scores, budget_params=900) for scores in problems]
    assert alone[0] != alone[1] and all(plan.blocks for plan in alone)
    together, found = threading.Barrier(2), {}

    def plan(which):
        together.wait(20)
        plans = [make_plan(problems[which], budget_params=900) for _ in range(5)]
        found[which] = plans, torch.get_num_threads()

    threads = [threading.Thread(target=plan, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which, (plans, number) in found.items():
        assert plans == [alone[which]] * 5 and number == 3
    assert len(found) == 2 and numbers() == [3, 3]
