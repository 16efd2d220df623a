"""A report as Markdown."""

from __future__ import annotations

from tabulate import tabulate

from .comparison import Paired
from .report import Report, RowReport
from .table import Cell

__all__ = ['report_text']

NOTHING = '-'


def report_text(report: Report) -> str:
    """Methods over tasks, in each task, and what was chosen at an edge."""
    parts = [f'# {report.grid.title}', _over_tasks(report), _by_task(report), _edges(report)]
    return '\n\n'.join(parts) + '\n'


def _over_tasks(report: Report) -> str:
    best = report.frontier
    titles = {entry.row.name: entry.row.title for entry in report.rows}
    other = titles.get(report.reference, NOTHING)
    heads = ['', 'mean', 'mean rank', f'against {other}', 'pairs', 'params, %', 'frontier']
    order = sorted(
        report.rows, key=lambda entry: (entry.mean is None, -(entry.mean or 0.0), entry.row.title)
    )
    lines = [
        [
            entry.row.title,
            _with(entry.mean, entry.spread),
            _number(entry.rank, '.2f'),
            _paired(entry.against),
            str(entry.against.pairs) if entry.against else NOTHING,
            _number(entry.share, '.2f'),
            'yes' if entry.row.name in best else '',
        ]
        for entry in order
    ]
    note = (
        'Mean over tasks ± standard deviation over seeds of that mean. Mean rank among the methods '
        'that every task has; equals share a rank. Against: mean over pairs of one task and seed ± '
        "its standard error over the pairs (over the tasks' means). Params: trained in percent of "
        "the backbone's, mean over tasks. Frontier: no method is better with as many or fewer. "
        f'{NOTHING}: not all runs that this needs are done.'
    )
    return f'## Over {len(report.grid.tasks)} tasks\n\n{_markdown(lines, heads)}\n\n{note}'


def _by_task(report: Report) -> str:
    tasks = report.grid.tasks
    heads = ['', *(f'{task.title}, {next(iter(task.metrics.values()))}' for task in tasks)]
    lines = [
        [entry.row.title, *(_cell(entry, task.name) for task in tasks)] for entry in report.rows
    ]
    note = (
        'Mean ± standard deviation over seeds, and in brackets the rank among the methods that the '
        'task has; n = seeds where not all are done.'
    )
    return f'## By task\n\n{_markdown(lines, heads)}\n\n{note}'


def _edges(report: Report) -> str:
    if report.edges:
        lines = '\n'.join(f'- {edge.text}' for edge in report.edges)
    elif any(entry.row.search for entry in report.rows):
        lines = 'No choice lies at an edge of what was tried.'
    else:
        lines = 'Nothing was searched for.'
    return f'## Choices at an edge\n\n{lines}'


def _cell(entry: RowReport, task: str) -> str:
    cell: Cell | None = entry.cells.get(task)
    if cell is None:
        return NOTHING
    seeds = '' if cell.complete else f', n = {len(cell.values)}'
    return f'{_with(cell.mean, cell.spread)} ({entry.ranks[task]:g}{seeds})'


def _with(value: float | None, spread: float | None) -> str:
    text = _number(value, '.1f')
    return text if value is None or spread is None else f'{text} ± {spread:.1f}'


def _paired(found: Paired | None) -> str:
    if found is None:
        return NOTHING
    errors = _number(found.error, '.2f'), _number(found.task_error, '.2f')
    return f'{found.mean:+.2f} ± {errors[0]} ({errors[1]})'


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _markdown(lines: list[list[str]], heads: list[str]) -> str:
    align = ['left', *['right'] * (len(heads) - 1)]
    return tabulate(lines, heads, tablefmt='github', colalign=align, disable_numparse=True)
