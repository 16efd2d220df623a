"""Methods against each other over tasks: ranks, and differences in pairs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TypeVar

__all__ = ['Paired', 'mean_ranks', 'paired', 'ranks']

Name = TypeVar('Name', bound=Hashable)


@dataclass(frozen=True)
class Paired:
    """Differences of two methods, each of one task and seed.

    Attributes:
        mean: Mean over the pairs.
        error: Standard error of that mean, as if pairs were independent: their sample deviation by
            the root of their number; None with fewer than two.
        task_error: The same of the tasks' mean differences. Seeds of a task share what the task
            does to the two methods, so this is what says something about further tasks.
        pairs: Number of pairs.
        tasks: Number of tasks.
    """

    mean: float
    error: float | None
    task_error: float | None
    pairs: int
    tasks: int


def ranks(values: Mapping[Name, float]) -> dict[Name, float]:
    """The place of each, 1 for the highest; equals share the mean of their places.

    Example:
        >>> ranks({'a': 50.0, 'b': 70.0, 'c': 50.0})
        {'a': 2.5, 'b': 1.0, 'c': 2.5}
    """
    order = sorted(values.values(), reverse=True)
    first: dict[float, int] = {}
    for place, value in enumerate(order, 1):
        first.setdefault(value, place)
    return {name: first[value] + (order.count(value) - 1) / 2 for name, value in values.items()}


def mean_ranks(values: Mapping[str, Mapping[Name, float]]) -> dict[Name, float]:
    """Mean rank over tasks of those that every task has; ranks are among them.

    Args:
        values: By task and name.
    """
    tasks = list(values.values())
    if not tasks:
        return {}
    everywhere = [name for name in tasks[0] if all(name in task for task in tasks)]
    by_task = [ranks({name: task[name] for name in everywhere}) for task in tasks]
    return {name: mean(found[name] for found in by_task) for name in everywhere}


def paired(
    ours: Mapping[tuple[str, int], float], theirs: Mapping[tuple[str, int], float]
) -> Paired | None:
    """Ours minus theirs, over the tasks and seeds that both have; None where there are none.

    Args:
        ours: By task and seed.
        theirs: By task and seed.
    """
    by_task: dict[str, list[float]] = {}
    for task, seed in ours:
        if (task, seed) in theirs:
            by_task.setdefault(task, []).append(ours[task, seed] - theirs[task, seed])
    pairs = [difference for found in by_task.values() for difference in found]
    if not pairs:
        return None
    of_tasks = [mean(found) for found in by_task.values()]
    return Paired(mean(pairs), _error(pairs), _error(of_tasks), len(pairs), len(of_tasks))


def _error(values: list[float]) -> float | None:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
