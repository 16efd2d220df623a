"""What a grid says beyond its table: over tasks, in pairs, against parameters, and at its edges.

The figure of a run is the first metric of its task. Everything is computed from what is done: a
mean over seeds is of the seeds that there are, ranks and means over tasks are of methods that every
task has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from cdra_mm.errors import ConfigError
from cdra_mm.pictures.frontier import draw_frontier, frontier
from cdra_mm.spelling import unknown

from .comparison import Paired, mean_ranks, paired, ranks
from .edges import Edge
from .grid import Grid, Row
from .table import Cell, Results, share_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['Report', 'RowReport', 'make_report']


@dataclass(frozen=True)
class RowReport:
    """A method over the tasks.

    Attributes:
        row: The method.
        cells: Its figures by task; tasks where nothing is done are left out.
        ranks: Its rank in each task, among all methods that the task has.
        mean: Mean over tasks of the means over seeds; None unless every task has it.
        spread: Sample deviation over seeds of the mean over tasks; None where fewer than two seeds
            have every task.
        rank: Mean rank over tasks, among methods that every task has.
        share: Trained parameters in percent of the backbone's, mean over tasks.
        against: Its differences from the method that all are compared with, None for itself.
    """

    row: Row
    cells: Mapping[str, Cell]
    ranks: Mapping[str, float]
    mean: float | None
    spread: float | None
    rank: float | None
    share: float | None
    against: Paired | None


@dataclass(frozen=True)
class Report:
    """A grid's report.

    Attributes:
        grid: The grid.
        rows: Its methods, in its order.
        reference: Name of the method that all are compared with; '' where nothing is done.
        edges: Choices at an edge of what was tried.
    """

    grid: Grid
    rows: tuple[RowReport, ...]
    reference: str
    edges: tuple[Edge, ...]

    @property
    def points(self) -> dict[str, tuple[float, float]]:
        """Share of parameters and mean over tasks of the methods that have both."""
        return {
            entry.row.name: (entry.share, entry.mean)
            for entry in self.rows
            if entry.share is not None and entry.mean is not None
        }

    @property
    def frontier(self) -> list[str]:
        """The methods that no other beats with as many parameters or fewer."""
        return frontier(self.points)

    def picture(self) -> Callable[[], Figure] | None:
        """What draws accuracy against parameters; None for fewer than two methods."""
        points = self.points
        if len(points) < 2:
            return None
        by_name = {entry.row.name: entry for entry in self.rows}
        labels = {
            name: f'{by_name[name].row.title}: {value:.1f} at {size:.2f} %'
            for name, (size, value) in points.items()
        }
        errors = {name: by_name[name].spread or 0.0 for name in points}
        count = len(self.grid.tasks)
        return lambda: draw_frontier(
            points,
            labels,
            'trained parameters, % of the backbone',
            f'mean over {count} tasks' if count > 1 else self.grid.tasks[0].title,
            errors=errors,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        best = self.frontier
        return {
            'grid': self.grid.name,
            'seeds': list(self.grid.seeds),
            'against': self.reference,
            'metrics': {task.name: next(iter(task.metrics)) for task in self.grid.tasks},
            'methods': {
                entry.row.name: {
                    'title': entry.row.title,
                    'tasks': {
                        task: {
                            'mean': cell.mean,
                            'spread': cell.spread,
                            'seeds': len(cell.values),
                            'rank': entry.ranks[task],
                        }
                        for task, cell in entry.cells.items()
                    },
                    'mean': entry.mean,
                    'spread': entry.spread,
                    'mean_rank': entry.rank,
                    'percent_of_backbone': entry.share,
                    'on_the_frontier': entry.row.name in best,
                    'difference': None if entry.against is None else asdict(entry.against),
                }
                for entry in self.rows
            },
            'at_an_edge': [asdict(edge) for edge in self.edges],
        }


def make_report(
    grid: Grid, results: Results, edges: Sequence[Edge] = (), *, against: str | None = None
) -> Report:
    """The report of a grid, as far as its runs are done.

    Args:
        grid: The grid.
        results: Its runs that are done.
        edges: Choices at an edge of what was tried.
        against: The method that all are compared with, by default the one of the best mean rank.

    Raises:
        ConfigError: If there is no such method.
    """
    figures = {row.name: _figures(grid, results, row) for row in grid.rows}
    if against is not None and against not in figures:
        raise ConfigError(unknown('method', against, figures, ' is not in the grid'))
    cells = {name: _cells(grid, found) for name, found in figures.items()}
    by_task: dict[str, dict[str, float]] = {task.name: {} for task in grid.tasks}
    for name, found in cells.items():
        for task, cell in found.items():
            assert cell.mean is not None
            by_task[task][name] = cell.mean
    own_ranks = {task: ranks(values) for task, values in by_task.items()}
    over_tasks = mean_ranks(by_task)
    reference = against or min(over_tasks, key=lambda name: over_tasks[name], default='')
    rows = []
    for row in grid.rows:
        name, whole = row.name, row.name in over_tasks
        other = None if name == reference or not reference else figures[reference]
        rows.append(
            RowReport(
                row=row,
                cells=cells[name],
                ranks={task: own_ranks[task][name] for task in cells[name]},
                mean=mean(by_task[task.name][name] for task in grid.tasks) if whole else None,
                spread=_spread(grid, figures[name]),
                rank=over_tasks.get(name),
                share=_share(grid, results, row),
                against=None if other is None else paired(figures[name], other),
            )
        )
    return Report(grid, tuple(rows), reference, tuple(edges))


def _figures(grid: Grid, results: Results, row: Row) -> dict[tuple[str, int], float]:
    """The first metric of a method's runs, by task and seed."""
    return {
        (task.name, seed): results[row.name, task.name, seed].figures[next(iter(task.metrics))]
        for task in grid.tasks
        for seed in grid.seeds
        if (row.name, task.name, seed) in results
    }


def _cells(grid: Grid, figures: Mapping[tuple[str, int], float]) -> dict[str, Cell]:
    cells = {}
    for task in grid.tasks:
        values = tuple(
            figures[task.name, seed] for seed in grid.seeds if (task.name, seed) in figures
        )
        if values:
            cells[task.name] = Cell(values, len(grid.seeds))
    return cells


def _spread(grid: Grid, figures: Mapping[tuple[str, int], float]) -> float | None:
    means = [
        mean(figures[task.name, seed] for task in grid.tasks)
        for seed in grid.seeds
        if all((task.name, seed) in figures for task in grid.tasks)
    ]
    return Cell(tuple(means)).spread


def _share(grid: Grid, results: Results, row: Row) -> float | None:
    shares = []
    for task in grid.tasks:
        done = (results.get((row.name, task.name, seed)) for seed in grid.seeds)
        found = [share_of(result, with_head=False) for result in done if result]
        if not found:
            return None
        shares.append(mean(found))
    value = mean(shares)
    return value if math.isfinite(value) else None
