"""A grid: methods x tasks x seeds, and the part of it that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cdra_mm.errors import ConfigError
from cdra_mm.methods import make_method
from cdra_mm.spelling import did_you_mean, unknown

__all__ = ['Grid', 'Row', 'Task', 'narrow', 'pick', 'read_seeds']


@dataclass(frozen=True)
class Task:
    """A data set with its config: one column, or one for each metric.

    Attributes:
        name: Its name on the command line.
        title: Its name in the table.
        config: The config that trains it.
        metrics: Key in a run's metrics -> title; the first decides.
        report: Which figure the table shows, `grid_file` says which.
        group: Tasks of a group get a mean of their own; '' for none.
        options: Settings of the config for every run of the task.
        methods: Name of a row -> settings of its method that this task needs otherwise.
    """

    name: str
    title: str
    config: Path
    metrics: Mapping[str, str]
    report: str
    group: str = ''
    options: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A method with its settings: one row of the table.

    Attributes:
        name: Its name on the command line.
        title: Its name in the table.
        family: The rows that it stands with.
        method: ``dict(type=..., **settings)``, see `cdra_mm.methods.make_method`.
        options: Settings of the config for every run of the row.
        search: Settings to choose on the validation split, key -> values to try.
    """

    name: str
    title: str
    family: str
    method: Mapping[str, Any]
    options: Mapping[str, Any]
    search: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Grid:
    """Everything that a table needs to be run.

    Attributes:
        name: Stem of its file.
        title: Caption of the table.
        rows: The methods.
        tasks: The data sets.
        seeds: A run for each.
        search_seeds: By so many of them, the first, settings are chosen; at least one.
        options: Settings of the config for every run.
        overrides: Settings put over all others.
        means: Whether the table has means over tasks.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    means: bool = True
    search_seeds: int = 1

    @property
    def choosing(self) -> tuple[int, ...]:
        """The seeds by whose runs settings are chosen."""
        return self.seeds[: self.search_seeds]


def narrow(
    grid: Grid,
    *,
    methods: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    seeds: Sequence[Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    search: bool = True,
    search_seeds: int | None = None,
) -> Grid:
    """The part of a grid that is asked for, checked as far as that goes without running it.

    Args:
        grid: The whole grid.
        methods: Names of rows, None for all.
        tasks: Names of tasks, None for all.
        seeds: Integers or texts of them, None for the grid's own.
        overrides: Settings put over the grid's own; what is given is not searched for.
        search: Whether settings are searched for; otherwise the configs' own are used.
        search_seeds: Seeds by which settings are chosen, None for the grid's own.

    Raises:
        ConfigError: If a name is unknown, nothing is left, a method or its settings are
            unknown, a config does not exist, settings would be chosen on the split that
            is reported, or by more seeds than there are.
    """
    rows = pick('method', grid.rows, methods)
    given = overrides or {}
    rows = tuple(
        replace(row, search={k: v for k, v in row.search.items() if search and k not in given})
        for row in rows
    )
    chosen = replace(
        grid,
        rows=rows,
        tasks=pick('task', grid.tasks, tasks),
        overrides=given,
    )
    chosen = narrow_seeds(chosen, seeds, search_seeds)
    if not (chosen.rows and chosen.tasks and chosen.seeds):
        raise ConfigError(
            f'nothing is left of grid {grid.name}: name at least one method, one task and one seed'
        )
    for task in chosen.tasks:
        for row in chosen.rows:
            _check_method(row, task)
        if not task.config.is_file():
            near = did_you_mean(task.config.name, [p.name for p in task.config.parent.glob('*.py')])
            raise ConfigError(f'task {task.name}: config {task.config} does not exist{near}')
        searched = next((row.name for row in chosen.rows if row.search), None)
        if searched and task.report == 'validation':
            raise ConfigError(
                f'task {task.name} reports its validation figure, and {searched} would choose its '
                'settings by the same images: take out search (or --no-search), or report a test '
                'split'
            )
    return chosen


def narrow_seeds(grid: Grid, seeds: Sequence[Any] | None, search_seeds: int | None) -> Grid:
    """A grid with some of its seeds.

    Args:
        grid: The grid.
        seeds: Integers or texts of them, None for the grid's own.
        search_seeds: Seeds by which settings are chosen, None for the grid's own.

    Raises:
        ConfigError: If a seed is none, or settings would be chosen by more seeds than there are.
    """
    found = grid.seeds if seeds is None else read_seeds(seeds)
    count = grid.search_seeds if search_seeds is None else search_seeds
    if not isinstance(count, int) or not 1 <= count <= max(1, len(found)):
        raise ConfigError(
            f'search_seeds={count!r}: expected how many seeds choose settings, 1 to {len(found)} '
            f'(seeds: {", ".join(map(str, found))}); give --search-seeds or more --seeds'
        )
    return replace(grid, seeds=found, search_seeds=count)


def _check_method(row: Row, task: Task) -> None:
    try:
        make_method({**row.method, **task.methods.get(row.name, {})})
    except ConfigError as error:
        raise ConfigError(f'row {row.name}: {error}') from None


def pick(what: str, entries: tuple[Any, ...], names: Sequence[str] | None) -> tuple[Any, ...]:
    """Those of the entries that are named, in their own order; all where no names are given.

    Raises:
        ConfigError: If a name is unknown.
    """
    if names is None:
        return entries
    known = {entry.name: entry for entry in entries}
    for name in names:
        if name not in known:
            raise ConfigError(unknown(what, name, known, ' is not in the grid'))
    return tuple(entry for name, entry in known.items() if name in names)


def read_seeds(values: Sequence[Any]) -> tuple[int, ...]:
    """Seeds without repetitions.

    Raises:
        ConfigError: If one is no integer, or negative.
    """
    seeds: list[int] = []
    for value in values:
        try:
            seeds.append(int(str(value)))
        except ValueError:
            raise ConfigError(f'seed {value!r}: expected an integer') from None
        if seeds[-1] < 0:
            raise ConfigError(f'seed {value!r}: expected at least 0')
    return tuple(dict.fromkeys(seeds))
