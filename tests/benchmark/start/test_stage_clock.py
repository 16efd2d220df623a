"""Time counts for the innermost stage, and none is lost."""

from __future__ import annotations

from threading import Thread

import pytest

from cdra_mm.benchmark.start.stage_clock import StageClock


class Clocks:
    """A wall and a CPU clock that move when they are told to."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def move(self, wall: float, cpu: float = 0.0) -> None:
        self.wall += wall
        self.cpu += cpu


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def made(clocks, begin=None) -> StageClock:
    return StageClock('first', begin, wall=lambda: clocks.wall, cpu=lambda: clocks.cpu)


def test_time_counts_for_the_innermost_stage(clocks):
    clock = made(clocks)
    clocks.move(1)
    with clock.stage('outer'):
        clocks.move(2)
        with clock.stage('inner'):
            clocks.move(4, 3)
        clocks.move(8)
    clocks.move(16)
    spent = clock.stop()
    assert {name: s.seconds for name, s in spent.items()} == {'first': 17, 'outer': 10, 'inner': 4}
    assert {name: s.cpu_seconds for name, s in spent.items()}['inner'] == 3


def test_stage_ends_where_its_block_fails(clocks):
    clock = made(clocks)
    with pytest.raises(KeyError), clock.stage('failing'):
        clocks.move(1)
        raise KeyError
    clocks.move(2)
    assert clock.stop()['first'].seconds == 2


def test_time_before_the_clock_was_made_is_the_first_stage_s(clocks):
    clocks.move(5, 3)
    clock = made(clocks, begin=1.0)
    clock.go_on_as('next')
    clocks.move(2, 1)
    spent = clock.stop()
    assert (spent['first'].seconds, spent['first'].cpu_seconds) == (4, 3)
    assert (spent['next'].seconds, spent['next'].cpu_seconds) == (2, 1)


def test_stage_that_is_entered_again_adds_up(clocks):
    clock = made(clocks)
    for _ in range(3):
        with clock.stage('again'):
            clocks.move(1)
    spent = clock.stop()['again']
    assert (spent.seconds, spent.entered) == (3, 3)


def test_other_threads_open_no_stage(clocks):
    clock = made(clocks)

    def work():
        with clock.stage('elsewhere'):
            clocks.move(1)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert set(clock.stop()) == {'first'} and clock.stop()['first'].seconds == 1
