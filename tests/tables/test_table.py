"""Means, spreads and shares of a table, and the four ways of writing it."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest

from cdra_mm.tables.grid import Grid, Row, Task
from cdra_mm.tables.results import Result, State
from cdra_mm.tables.table import Cell, make_table
from cdra_mm.tables.text_formats import FORMATS


def task(name, group, **settings):
    given = {'metrics': {'top1': 'top-1'}, 'report': 'final_run', **settings}
    return Task(name, name.title(), Path(f'{name}.py'), group=group, **given)


ROWS = (
    Row('full', 'Full', '', {'type': 'full'}, {}, {}),
    Row('linear', 'Linear', 'Cheap & quick', {'type': 'linear'}, {}, {}),
    Row('cdra', 'CDRA', 'Cheap & quick', {'type': 'cdra'}, {}, {}),
)
# Groups of different size: the mean of groups is not the mean of tasks.
GRID = Grid('toy', 'Toy', ROWS, (task('a', 'One'), task('b', 'One'), task('c', 'Two')), (0, 1))
VALUES = {
    'full': {'a': (60, 62), 'b': (70, 70), 'c': (40, 44)},
    'linear': {'a': (50, 50), 'b': (60, 61)},
    'cdra': {'a': (61, 63), 'b': (71, 71), 'c': (50,)},
}


def result(value, share=(5, 1)):
    summary = {
        'trainable_backbone': share[0], 'trainable_head': share[1], 'backbone_parameters': 1000,
    }  # fmt: skip
    return Result(State.DONE, {'top1': float(value), 'iou': value / 2}, summary)


def results(values=VALUES):
    return {
        (row, name, seed): result(value)
        for row, tasks in values.items()
        for name, figures in tasks.items()
        for seed, value in enumerate(figures)
    }


def cells(table, row):
    return {
        (column.group, column.title): cell
        for _, rows in table.families
        for title, found in rows
        if title == row
        for column, cell in zip(table.columns, found, strict=True)
    }


def test_table_means_are_taken_seed_by_seed():
    full = cells(make_table(GRID, results()), 'Full')
    assert full['One', 'A'].values == (60, 62)
    assert full['One', 'Mean of 2'].values == (65, 66)
    assert full['', 'Mean of 2 groups'].values == (52.5, 55)
    assert full['', 'Mean of 3 tasks'].values == (170 / 3, 176 / 3)
    # The spread of the mean is not the mean of the spreads.
    assert full['', 'Mean of 2 groups'].spread == pytest.approx(2.5 / math.sqrt(2))


def test_table_mean_needs_every_task_with_the_seed():
    table = make_table(GRID, results())
    linear, cdra = cells(table, 'Linear'), cells(table, 'CDRA')
    assert linear['One', 'Mean of 2'].values == (55, 55.5)
    assert linear['', 'Mean of 3 tasks'].values == linear['', 'Mean of 2 groups'].values == ()
    assert cdra['', 'Mean of 3 tasks'].values == ((61 + 71 + 50) / 3,)
    assert not cdra['', 'Mean of 3 tasks'].complete


def test_table_says_of_how_many_tasks_a_mean_is():
    part = replace(GRID, tasks=GRID.tasks[:2])
    titles = [column.title for column in make_table(part, results()).columns]
    assert titles == ['A', 'B', 'Mean of 2 tasks', 'Params, %', 'with head, %']


def test_table_shares_are_means_over_tasks_and_blank_where_unknown():
    found = results({'full': {'a': (1,), 'b': (1,), 'c': (1,)}})
    found['full', 'a', 0] = result(1, share=(11, 7))
    full = cells(make_table(GRID, found), 'Full')
    assert full['', 'Params, %'].values == pytest.approx(((1.1 + 0.5 + 0.5) / 3,))
    assert full['', 'with head, %'].values == pytest.approx(((1.8 + 0.6 + 0.6) / 3,))
    found['full', 'b', 0] = replace(result(1), summary={})
    assert cells(make_table(GRID, found), 'Full')['', 'Params, %'].values == ()
    del found['full', 'b', 0]
    assert cells(make_table(GRID, found), 'Full')['', 'Params, %'].values == ()


def test_table_without_means_has_every_metric_and_share_by_task():
    metrics = {'top1': 'top-1', 'iou': 'IoU'}
    tasks = (task('a', '', metrics=metrics, report='validation'), task('b', ''))
    table = make_table(replace(GRID, tasks=tasks, means=False), results())
    columns = [(column.group, column.title) for column in table.columns]
    assert columns == [
        ('A', 'top-1'), ('A', 'IoU'), ('A', 'Params, %'), ('A', 'with head, %'),
        ('B', 'top-1'), ('B', 'Params, %'), ('B', 'with head, %'),
    ]  # fmt: skip
    assert cells(table, 'Full')['A', 'IoU'].values == (30, 31)
    assert 'On validation images: A.' in table.notes


def test_cell_spread_is_the_sample_deviation():
    assert Cell((1.0, 3.0), 2).spread == pytest.approx(math.sqrt(2))
    assert Cell((1.0,), 1).spread is None
    assert Cell((), 1).mean is None


def test_format_terminal_is_what_was_written_by_hand():
    grid = replace(GRID, rows=ROWS[1:], tasks=GRID.tasks[:2])
    assert FORMATS['terminal'](make_table(grid, results())) == (
        'Toy\n'
        '\n'
        '        -------- One ---------\n'
        '                 A           B  Mean of 2 tasks  Params, %  with head, %\n'
        '------------------------------------------------------------------------\n'
        'Cheap & quick:\n'
        'Linear  50.0 ± 0.0  60.5 ± 0.7       55.2 ± 0.4       0.50          0.60\n'
        'CDRA    62.0 ± 1.4  71.0 ± 0.0       66.5 ± 0.7       0.50          0.60\n'
        '\n'
        "In percent; mean ± standard deviation over 2 seeds. Params: trained in percent of the "
        "backbone's, without and with the head, mean over tasks.\n"
    )  # fmt: skip


def test_format_terminal_marks_what_is_not_done():
    text = FORMATS['terminal'](make_table(GRID, results()))
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert '50.0 (1)' in lines['CDRA']
    assert '(n): n seeds are done so far.' in text and '-: not all runs' in text
    whole = FORMATS['terminal'](make_table(replace(GRID, rows=ROWS[:1]), results()))
    assert '(n)' not in whole and '-: not' not in whole


def test_format_markdown_marks_the_best_of_the_complete():
    table = make_table(GRID, results())
    lines = FORMATS['markdown'](table).splitlines()
    assert lines[2] == (
        '|  | One: A | One: B | One: Mean of 2 | Two: C | Mean of 2 groups | '
        'Mean of 3 tasks | Params, % | with head, % |'
    )
    assert lines[3] == '| --- |' + ' ---: |' * 8
    assert lines[5] == '| *Cheap & quick* |' + '  |' * 8
    full, cdra = (line.split(' | ') for line in (lines[4], lines[7]))
    assert cdra[1] == '**62.0 ± 1.4**' and full[1] == '61.0 ± 1.4'
    assert cdra[4] == '50.0 (1)'
    assert '**0.50**' not in lines[7]


@pytest.mark.parametrize(('half', 'shown'), [(50, '50.0 (1)'), (42, '42.0 (1)')])
def test_format_markdown_does_not_compare_with_what_is_half_done(half, shown):
    """One seed of CDRA is better on C, or as good, but not all are done."""
    values = {
        'full': VALUES['full'],
        'linear': {**VALUES['linear'], 'c': (41, 41)},
        'cdra': {**VALUES['cdra'], 'c': (half,)},
    }
    lines = FORMATS['markdown'](make_table(GRID, results(values))).splitlines()
    marked = [lines[i].split(' | ')[4] for i in (4, 6, 7)]
    assert marked == ['**42.0 ± 2.8**', '41.0 ± 0.0', shown]


def test_format_csv_holds_figures_in_full():
    rows = list(csv.reader(io.StringIO(FORMATS['csv'](make_table(GRID, results())))))
    assert rows[0][:5] == ['family', 'method', 'One: A', 'One: A (spread)', 'One: A (seeds)']
    assert {len(row) for row in rows} == {2 + 3 * 6 + 2}
    by_method = {row[1]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert by_method['Full']['Mean of 3 tasks'] == '57.6667'
    assert by_method['Linear']['Two: C'] == '' and by_method['Linear']['Two: C (seeds)'] == '0'
    assert by_method['CDRA']['family'] == 'Cheap & quick'


def test_format_latex_has_rows_of_one_width_and_escapes():
    text = FORMATS['latex'](make_table(GRID, results()))
    lines = text.splitlines()
    assert r'\begin{tabular}{lrrrrrrrr}' in lines
    assert r'\multicolumn{9}{l}{\emph{Cheap \& quick}} \\' in lines
    body = [line for line in lines if line.endswith(r'\\') and 'multicolumn' not in line]
    assert {line.replace(r'\&', '').count('&') for line in body} == {8}
    assert r'\textbf{62.0 $\pm$ 1.4}' in text
    assert r'Params, \% & with head, \% \\' in text
    (over,) = [line for line in lines if r'{One}' in line]
    assert over == (
        r' & \multicolumn{3}{c}{One} & \multicolumn{1}{c}{Two} & \multicolumn{4}{c}{} \\'
    )
