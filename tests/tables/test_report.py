"""The report over tasks: what it is made of, how it is written, and what it names."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cdra_mm.core import ConfigError
from cdra_mm.tables.edges import Edge, edges_of
from cdra_mm.tables.report import make_report
from cdra_mm.tables.report_files import write_report
from cdra_mm.tables.report_text import report_text

from .project import GRID as PROJECT_GRID
from .test_table import GRID, ROWS, result, results, task

VALUES = {
    'full': {'a': (60, 62), 'b': (70, 70), 'c': (40, 44)},
    'linear': {'a': (50, 50), 'b': (60, 61)},
    'cdra': {'a': (61, 63), 'b': (70, 70), 'c': (50,)},
}
SEARCH = "search = {'optimizer.lr': [0.3, 0.1, 0.2]}\n"


@pytest.fixture
def report():
    return make_report(GRID, results(VALUES), [Edge('full', 'a', 'lr', 0.1, (0.1, 0.2))])


def by_name(report):
    return {entry.row.name: entry for entry in report.rows}


def test_report_takes_means_ranks_and_pairs_of_what_is_done(report):
    full, linear, cdra = (by_name(report)[row.name] for row in ROWS)
    assert report.reference == 'cdra'
    assert (full.ranks, cdra.ranks) == (
        {'a': 2.0, 'b': 1.5, 'c': 2.0},
        {'a': 1.0, 'b': 1.5, 'c': 1.0},
    )
    # Over tasks only the two that every task has are ranked.
    assert (full.rank, cdra.rank, linear.rank) == (11 / 6, 7 / 6, None)
    assert full.mean == pytest.approx((61 + 70 + 42) / 3)
    assert cdra.mean == pytest.approx((62 + 70 + 50) / 3)
    assert (linear.mean, linear.spread, cdra.spread) == (None, None, None)
    assert full.spread == pytest.approx(2**0.5)  # of 170 / 3 and 176 / 3
    assert cdra.against is None
    # Pairs: a -1, -1; b 0, 0; c -10.
    assert full.against.mean == pytest.approx(-2.4) and full.against.pairs == 5
    assert (linear.against.pairs, linear.against.tasks) == (4, 2)


def test_report_sorts_by_the_first_metric_of_each_task():
    metrics = {'iou': 'IoU', 'top1': 'top-1'}
    grid = replace(GRID, tasks=(task('a', '', metrics=metrics), *GRID.tasks[1:]))
    full = by_name(make_report(grid, results(VALUES)))['full']
    assert full.cells['a'].values == (30, 31) and full.cells['b'].values == (70, 70)


def test_report_frontier_is_of_shares_and_means():
    found = results({name: {t: (60 + i,) for t in 'abc'} for i, name in enumerate(VALUES)})
    for (name, t, seed), one in list(found.items()):
        share = {'full': 1000, 'linear': 0, 'cdra': 5}[name]
        found[name, t, seed] = replace(one, summary=result(1, (share, 1)).summary)
    report = make_report(GRID, found)
    assert report.points == {'full': (100, 60), 'linear': (0, 61), 'cdra': (0.5, 62)}
    assert report.frontier == ['linear', 'cdra']
    assert make_report(replace(GRID, rows=ROWS[:1]), found).picture() is None


def test_report_is_written_as_text_json_and_picture(report, tmp_path):
    write_report(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'frontier.png', 'frontier.svg', 'report.json', 'report.md',
    ]  # fmt: skip
    text = (tmp_path / 'report.md').read_text()
    assert text == report_text(report)
    over, tasks = text.split('## By task')
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in over.splitlines()[4:9]]
    assert rows[0][3] == 'against CDRA'
    assert [row[0] for row in rows[2:]] == ['CDRA', 'Full', 'Linear']
    assert rows[3][1:5] == ['57.7 ± 1.4', '1.83', '-2.40 ± 1.91 (3.18)', '5']
    assert rows[4][1:3] == ['-', '-']
    assert '61.0 ± 1.4 (2)' in tasks and '50.0 (1, n = 1)' in tasks
    edge = 'full a: the best lr=0.1 is the lowest that was tried (0.1, 0.2)'
    assert edge in text
    found = json.loads((tmp_path / 'report.json').read_text())
    assert found['against'] == 'cdra'
    assert found['methods']['full']['difference']['pairs'] == 5
    assert found['methods']['full']['tasks']['b']['rank'] == 1.5
    assert found['at_an_edge'] == [
        {'row': 'full', 'task': 'a', 'key': 'lr', 'value': 0.1, 'tried': [0.1, 0.2]}
    ]
    assert (tmp_path / 'frontier.svg').read_text().count('<svg') == 1


def test_report_of_nothing_is_blank():
    report = make_report(GRID, {})
    assert report.reference == '' and report.picture() is None
    assert report_text(report).count(' - ') > 10
    assert 'Nothing was searched for.' in report_text(report)


def test_report_compares_with_the_row_that_is_named():
    report = make_report(GRID, results(VALUES), against='linear')
    assert by_name(report)['linear'].against is None
    assert by_name(report)['full'].against.mean == pytest.approx((10 + 12 + 10 + 9) / 4)
    with pytest.raises(ConfigError, match=r"method 'liner' is not in the grid \(did you mean"):
        make_report(GRID, results(VALUES), against='liner')


@pytest.mark.parametrize(
    ('values', 'chosen', 'edge'),
    [
        ([0.3, 0.1, 0.2], 0.1, 'lowest'),
        ([0.3, 0.1, 0.2], 0.3, 'highest'),
        ([0.3, 0.1, 0.2], 0.2, None),
        ([0.1, 0.1], 0.1, None),
        (['a', 'b'], 'a', None),
        ([True, False], True, None),
    ],
)
def test_edges_are_of_numbers(values, chosen, edge):
    row = replace(ROWS[0], search={'lr': values})
    found = edges_of(row, 'cats', {'lr': chosen})
    assert [f'is the {edge} that' in one.text for one in found] == ([True] if edge else [])


def test_tables_name_a_choice_at_an_edge_and_write_the_report(project, capsys):
    search = {'cdra': [0.3, 0.1, 0.2], 'full': [0.05, 0.1, 0.3]}
    text = PROJECT_GRID
    for name, values in search.items():
        setting = f"search={{'optimizer.lr': {values}}})"
        old = 'budget_percent=0.5))' if name == 'cdra' else "type='full'))"
        text = text.replace(old, f'{old[:-1]}, {setting}')
    project.write_grid(text)
    words = ('--methods', 'cdra', 'full', '--tasks', 'cats', '--seeds', '0')
    project.run(*words)
    line = 'cdra cats: the best optimizer.lr=0.1 is the lowest that was tried (0.1, 0.2, 0.3)'
    printed = capsys.readouterr().out
    assert line in printed and 'full cats: the best' not in printed
    assert line in (project.out / 'report.md').read_text()
    (edge,) = json.loads((project.out / 'report.json').read_text())['at_an_edge']
    assert (edge['row'], edge['task'], edge['value']) == ('cdra', 'cats', 0.1)
    assert (project.out / 'frontier.png').is_file()
    project.run(*words, '--show', '--report', '--against', 'full')
    assert 'against Full' in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"method 'fulll' is not in the grid"):
        project.run(*words, '--against', 'fulll')
