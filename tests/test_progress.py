"""Progress: counts and time left on a terminal, whole lines or nothing in a log."""

from __future__ import annotations

import ast
import io

import pytest
import torch

from cdra_mm import progress
from cdra_mm.core import make_plan
from cdra_mm.core.planning import budget
from cdra_mm.progress import counted, late_line, logged_progress, progress_line, reported_to


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand."""
    now = [100.0]
    monkeypatch.setattr('tqdm.std.time', lambda: now[0])
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def test_progress_line_shows_counts_and_time_left_on_a_terminal(clock):
    terminal = Terminal()
    show = progress_line('scoring', unit='samples', stream=terminal)
    show(0, 40)
    clock[0] += 10
    show(20, 40)
    drawn = terminal.getvalue().rpartition('\r')[2]
    assert 'scoring:  50%' in drawn and '20/40' in drawn and '00:10<00:10' in drawn
    clock[0] += 10
    show(40, 40)
    assert terminal.getvalue().endswith('\n') and terminal.getvalue().count('\n') == 1


def test_bytes_are_counted_in_powers_of_1024_and_a_resumed_transfer_by_what_came_since(clock):
    terminal = Terminal()
    show = progress_line('a.zip', stream=terminal)
    show(2**20, 4 * 2**20)
    clock[0] += 1
    show(2 * 2**20, 4 * 2**20)
    drawn = terminal.getvalue().rpartition('\r')[2]
    assert '2.00M/4.00M' in drawn and '1.05MB/s' in drawn


def test_progress_line_writes_nothing_into_a_log():
    log = io.StringIO()
    show = progress_line('scoring', unit='samples', stream=log)
    show(0, 2)
    show(2, 2)
    assert log.getvalue() == ''


def test_logged_progress_tells_whole_lines_where_there_is_no_terminal(clock):
    lines, log = [], io.StringIO()
    show = logged_progress('scoring', lines.append, unit='samples', stream=log)
    for done in range(11):
        show(done, 10)
        clock[0] += 1
    assert [line.split('  ')[1] for line in lines] == [
        f'{done} of 10 samples' for done in (3, 5, 8, 10)
    ]
    assert lines[0].endswith('  30 %  00:07 left') and lines[-1].endswith('100 %')
    assert log.getvalue() == '' and not any('\r' in line or '\n' in line for line in lines)


def test_logged_progress_draws_one_line_on_a_terminal():
    lines, terminal = [], Terminal()
    show = logged_progress('scoring', lines.append, unit='samples', stream=terminal)
    show(10, 10)
    assert lines == [] and '10/10' in terminal.getvalue()


def test_late_line_shows_only_what_takes_long(monkeypatch, clock):
    shown = []
    for seconds in (0.01, 0.9):
        terminal = Terminal()
        monkeypatch.setattr(progress.sys, 'stderr', terminal)
        with reported_to(late_line):
            for _ in counted(range(4), 'planning', unit='weights'):
                clock[0] += seconds
        shown.append(terminal.getvalue())
    assert shown[0] == ''
    assert '2/4' in shown[1] and shown[1].endswith('\n')


def test_phases_are_reported_to_the_innermost_that_asks_for_them():
    told = []

    def start(name):
        return lambda label, unit: lambda done, total: told.append((name, label, unit, done, total))

    def work():
        assert list(counted([7], 'planning', unit='weights')) == [7]

    work()
    assert not told
    with reported_to(start('outer')):
        with reported_to(start('inner')):
            work()
        with reported_to(None):
            work()
    work()
    assert told == [
        (name, 'planning', 'weights', done, 1) for name in ('inner', 'outer') for done in (0, 1)
    ]


def test_budget_search_draws_nothing_unless_progress_is_handed_in(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, 'stderr', terminal)
    scores = {str(i): torch.rand(20, 20) for i in range(3)}

    def slow(name, score):
        clock[0] += 2
        return histograms(name, score)

    histograms = budget.coarse_histogram
    monkeypatch.setattr(budget, 'coarse_histogram', slow)
    make_plan(scores, budget_params=100, rank_rule='count')
    assert terminal.getvalue() == ''
    make_plan(scores, budget_params=100, rank_rule='count', progress=late_line)
    assert '2/3' in terminal.getvalue()


DRAWS = {'progress_line', 'late_line', 'logged_progress', 'print', 'stderr', 'stdout'}


def test_what_computes_draws_nothing_by_itself(repository):
    paths = [
        p for room in ('core', 'methods') for p in (repository / 'cdra_mm' / room).rglob('*.py')
    ]
    assert len(paths) > 40
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, 'id', None) or getattr(node, 'attr', None)
            assert name not in DRAWS, f'{path.name}:{node.lineno} uses {name}'
