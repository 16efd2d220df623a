"""Runs of a study in memory that are done, and the search for a rate among them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from cdra_mm.errors import ConfigError
from cdra_mm.storage.strict_json import strict_json

__all__ = ['Runs', 'search', 'worth']

Key = tuple[str, str, int, float]  # task, row, seed, rate


class Runs:
    """The runs of a folder that are done.

    Args:
        folder: Holds a file of JSON lines for each task; it may lack some, or be none yet.
        tasks: Their names.

    Raises:
        ConfigError: If a line is no run of its task.
    """

    def __init__(self, folder: Path, tasks: Sequence[str]) -> None:
        self.folder = folder
        self.found: dict[Key, Mapping[str, Any]] = {}
        for task in tasks:
            path = self._path(task)
            if path.exists():
                for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
                    self._keep(task, line, f'{path}:{number}')

    def _path(self, task: str) -> Path:
        return self.folder / f'{task}.jsonl'

    def _keep(self, task: str, line: str, where: str) -> None:
        try:
            run = strict_json(line)
            if run['task'] != task or not isinstance(run['metric'], float | int):
                raise ValueError
            key = task, run['method'], int(run['seed']), float(run['rate'])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f'{where} is no line of a run of {task}: {line[:60]!r}') from None
        self.found[key] = run

    def of(self, task: str, row: str, seed: int) -> dict[float, Mapping[str, Any]]:
        """Those of a task, row and seed, by rate."""
        mine = task, row, seed
        return {rate: run for (*key, rate), run in self.found.items() if tuple(key) == mine}

    def of_all(
        self, task: str, row: str, seeds: Sequence[int]
    ) -> dict[float, list[Mapping[str, Any]]]:
        """Those of a task and row by rate, one of each seed; rates that one lacks are left out."""
        each = [self.of(task, row, seed) for seed in seeds]
        return {
            rate: [runs[rate] for runs in each] for rate in each[0] if all(rate in r for r in each)
        }

    def add(self, run: Mapping[str, Any]) -> None:
        """Writes the line of a run; a loss that is no number as null."""
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in run.items()
        }
        with self._path(run['task']).open('a', encoding='utf-8') as file:
            file.write(json.dumps(plain) + '\n')
        self.found[run['task'], run['method'], run['seed'], run['rate']] = plain


def worth(runs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """What a rate is chosen by: the mean validation metric, of equals the lower mean loss.

    Args:
        runs: At the rate, one of each seed that searches.
    """
    losses = [math.inf if run.get('val_loss') is None else run['val_loss'] for run in runs]
    return fmean(run['metric'] for run in runs), -fmean(losses)


def search(
    rates: Sequence[float],
    begin: float,
    run: Callable[[float], Sequence[Mapping[str, Any]]],
    done: Mapping[float, Sequence[Mapping[str, Any]]] = MappingProxyType({}),
) -> float:
    """The best rate of a ladder: from where it begins until a worse one stands on each side.

    Args:
        rates: The ladder, rising.
        begin: One of it.
        run: Trains at a rate, with each seed that searches.
        done: Runs that are done, by rate; they count as tried.
    """
    tried = {rate: runs for rate, runs in done.items() if rate in rates}
    if not tried:
        tried[begin] = run(begin)
    while True:
        best = max(tried, key=lambda rate: worth(tried[rate]))
        at = rates.index(best)
        beside = [rate for rate in rates[max(at - 1, 0) : at + 2] if rate not in tried]
        if not beside:
            return best
        tried[beside[0]] = run(beside[0])
