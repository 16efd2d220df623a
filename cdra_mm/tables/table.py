"""From the figures of single runs to a table: means over tasks, spread over seeds, shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from .grid import Grid, Row, Task
from .results import Result

__all__ = ['Cell', 'Column', 'Results', 'Table', 'make_table', 'share_of']

# (row, task, seed) -> a run that is done.
Results = Mapping[tuple[str, str, int], Result]


@dataclass(frozen=True)
class Cell:
    """One figure of the table.

    Attributes:
        values: Its value with each seed; empty where nothing is done.
        asked: Number of seeds that it should have.
    """

    values: tuple[float, ...] = ()
    asked: int = 1

    @property
    def mean(self) -> float | None:
        """Mean over the seeds, None where nothing is done."""
        return mean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds, None with fewer than two."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def complete(self) -> bool:
        """Whether it has a value for every seed."""
        return len(self.values) == self.asked


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: Its title.
        group: What stands over it and its neighbours; ''.
        share: Whether it is a share of parameters: one value, and the smallest is no winner.
    """

    title: str
    group: str = ''
    share: bool = False


@dataclass(frozen=True)
class Table:
    """A table, ready to be written.

    Attributes:
        title: Its caption.
        columns: Its columns.
        families: Title of a family -> its rows, each a title and the cells.
        notes: What a reader must know to read it right.
    """

    title: str
    columns: tuple[Column, ...]
    families: tuple[tuple[str, tuple[tuple[str, tuple[Cell, ...]], ...]], ...]
    notes: tuple[str, ...]

    def best(self, column: int) -> float | None:
        """The highest mean of a column among complete cells; None for shares and lone rows."""
        cells = [cells[column] for _, rows in self.families for _, cells in rows]
        means = [cell.mean for cell in cells if cell.mean is not None and cell.complete]
        if self.columns[column].share or len(means) < 2:
            return None
        return max(means)


def make_table(grid: Grid, results: Results) -> Table:
    """The table of a grid, as far as its runs are done.

    Means over tasks are taken seed by seed, and only over seeds that all tasks have: a mean of
    some of the tasks would be another figure.
    """
    parts = list(_parts(grid))
    families: dict[str, list[tuple[str, tuple[Cell, ...]]]] = {}
    for row in grid.rows:
        cells = tuple(cell(row, results) for _, cell in parts)
        families.setdefault(row.family, []).append((row.title, cells))
    return Table(
        title=grid.title,
        columns=tuple(column for column, _ in parts),
        families=tuple((name, tuple(rows)) for name, rows in families.items()),
        notes=_notes(grid, families),
    )


Make = Callable[[Row, Results], Cell]


def _parts(grid: Grid) -> list[tuple[Column, Make]]:
    """Every column with what makes its cells, in the order of the papers."""
    groups: dict[str, list[Task]] = {}
    for task in grid.tasks:
        groups.setdefault(task.group, []).append(task)
    grouped = len(groups) > 1
    parts: list[tuple[Column, Make]] = []
    for group, tasks in groups.items():
        for task in tasks:
            for key, title in task.metrics.items():
                several = len(task.metrics) > 1 or not grid.means
                column = Column(title, task.title) if several else Column(task.title, group)
                parts.append((column, _figures(grid, task, key)))
            if not grid.means:
                parts += _shares(grid, [task], task.title)
        if grid.means and grouped and len(tasks) > 1:
            parts.append((Column(f'Mean of {len(tasks)}', group), _mean_of(grid, [tasks])))
    if grid.means:
        if grouped:
            count = f'Mean of {len(groups)} groups'
            parts.append((Column(count), _mean_of(grid, list(groups.values()))))
        if len(grid.tasks) > 1:
            count = f'Mean of {len(grid.tasks)} tasks'
            parts.append((Column(count), _mean_of(grid, [grid.tasks])))
        parts += _shares(grid, grid.tasks, '')
    return parts


def _figures(grid: Grid, task: Task, key: str) -> Make:
    def cell(row: Row, results: Results) -> Cell:
        done = (results.get((row.name, task.name, seed)) for seed in grid.seeds)
        return Cell(tuple(result.figures[key] for result in done if result), len(grid.seeds))

    return cell


def _mean_of(grid: Grid, groups: Sequence[Sequence[Task]]) -> Make:
    """The mean over groups of the mean over their tasks; the first metric of each task."""

    def cell(row: Row, results: Results) -> Cell:
        values = []
        for seed in grid.seeds:
            means = []
            for tasks in groups:
                done = [results.get((row.name, task.name, seed)) for task in tasks]
                if all(done):
                    pairs = zip(tasks, done, strict=True)
                    means.append(mean(r.figures[next(iter(t.metrics))] for t, r in pairs if r))
            if len(means) == len(groups):
                values.append(mean(means))
        return Cell(tuple(values), len(grid.seeds))

    return cell


def _shares(grid: Grid, tasks: Sequence[Task], group: str) -> list[tuple[Column, Make]]:
    def share(with_head: bool) -> Make:
        def cell(row: Row, results: Results) -> Cell:
            by_task = []
            for task in tasks:
                done = (results.get((row.name, task.name, seed)) for seed in grid.seeds)
                shares = [share_of(result, with_head=with_head) for result in done if result]
                if not shares:
                    return Cell()
                by_task.append(mean(shares))
            value = mean(by_task)
            return Cell((value,)) if math.isfinite(value) else Cell()

        return cell

    return [
        (Column('Params, %', group, share=True), share(False)),
        (Column('with head, %', group, share=True), share(True)),
    ]


def share_of(result: Result, *, with_head: bool) -> float:
    """Trained parameters in percent of the backbone's; NaN where the summary does not say."""
    try:
        trained = result.summary['trainable_backbone']
        if with_head:
            trained += result.summary['trainable_head']
        return float(100 * trained / result.summary['backbone_parameters'])
    except (KeyError, TypeError, ZeroDivisionError):
        return math.nan


def _notes(
    grid: Grid, families: Mapping[str, list[tuple[str, tuple[Cell, ...]]]]
) -> tuple[str, ...]:
    seeds = len(grid.seeds)
    over = f'mean ± standard deviation over {seeds} seeds' if seeds > 1 else 'one seed, no spread'
    notes = [
        f"In percent; {over}. Params: trained in percent of the backbone's, without and with the "
        f'head{", mean over tasks" if grid.means else ""}.'
    ]
    cells = [cell for rows in families.values() for _, row in rows for cell in row]
    if any(cell.values and not cell.complete for cell in cells):
        notes.append('(n): n seeds are done so far.')
    if any(not cell.values for cell in cells):
        notes.append('-: not all runs that this needs are done.')
    if any(task.report == 'validation' for task in grid.tasks):
        titles = ', '.join(task.title for task in grid.tasks if task.report == 'validation')
        notes.append(f'On validation images: {titles}.')
    return tuple(notes)
