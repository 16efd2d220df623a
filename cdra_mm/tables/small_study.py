"""A whole study in memory: methods and tasks of a file, trained on images that are held there.

What ``tools/tables.py`` does for a file of `small_file`. A run costs its training and nothing else:
no start of an interpreter, no reading of files, no augmentation. Each task has a file of JSON
lines, ``DIR/TASK.jsonl``, a run each; a run that is there is not run again.

Rates are chosen on validation images with the first seed, from where a row begins up and down the
ladder until a worse one stands on each side of the best; the other seeds take it. What is reported
is of the test images, which nothing was chosen on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache, cached_property, lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from cdra_mm.benchmark.small_tasks import Task
from cdra_mm.benchmark.small_training import deit_tiny
from cdra_mm.errors import ConfigError
from cdra_mm.storage import write_text
from cdra_mm.storage.strict_json import strict_json

from .edges import Edge
from .grid import pick
from .report import make_report
from .report_files import write_report
from .report_text import report_text
from .results import Result, State
from .small_file import RATE, SmallStudy, read_small_study
from .small_memory import Remembered
from .small_recipes import Attached
from .small_runs import Setting
from .table import Results, make_table
from .text_formats import FORMATS, SUFFIXES

__all__ = ['Runs', 'chosen_rates', 'main', 'results_of', 'run_task', 'search']

Backbone = Callable[[str, int], nn.Module]
Key = tuple[str, str, int, float]  # task, row, seed, rate
# What the runs of a grid need and these do not.
NOT_HERE: Mapping[str, Any] = dict(
    cfg_options=[], no_search=False, devices=None, launcher=None, processes='none', cold=False,
    timeout=None, drop_checkpoints=False,
)  # fmt: skip


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

    def add(self, run: Mapping[str, Any]) -> None:
        """Writes the line of a run; a loss that is no number as null."""
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in run.items()
        }
        with self._path(run['task']).open('a', encoding='utf-8') as file:
            file.write(json.dumps(plain) + '\n')
        self.found[run['task'], run['method'], run['seed'], run['rate']] = plain


def worth(run: Mapping[str, Any]) -> tuple[float, float]:
    """What a rate is chosen by: the validation metric, of equals the lower loss."""
    loss = run.get('val_loss')
    return run['metric'], -math.inf if loss is None else -loss


def search(
    rates: Sequence[float],
    begin: float,
    run: Callable[[float], Mapping[str, Any]],
    done: Mapping[float, Mapping[str, Any]] = MappingProxyType({}),
) -> float:
    """The best rate of a ladder: from where it begins until a worse one stands on each side.

    Args:
        rates: The ladder, rising.
        begin: One of it.
        run: Trains at a rate.
        done: Runs that are done, by rate; they count as tried.
    """
    tried = {rate: run for rate, run in done.items() if rate in rates}
    if not tried:
        tried[begin] = run(begin)
    while True:
        best = max(tried, key=lambda rate: worth(tried[rate]))
        at = rates.index(best)
        beside = [rate for rate in rates[max(at - 1, 0) : at + 2] if rate not in tried]
        if not beside:
            return best
        tried[beside[0]] = run(beside[0])


def chosen_rates(study: SmallStudy, runs: Runs) -> dict[tuple[str, str], tuple[float, list[float]]]:
    """By row and task the best rate of the first seed, and all that were tried, rising."""
    found: dict[tuple[str, str], tuple[float, list[float]]] = {}
    for row in study.grid.rows:
        for task in study.grid.tasks:
            tried = {
                rate: run
                for (t, name, seed, rate), run in runs.found.items()
                if (t, name, seed) == (task.name, row.name, study.grid.seeds[0])
            }
            if tried:
                best = max(tried, key=lambda rate: worth(tried[rate]))
                found[row.name, task.name] = best, sorted(tried)
    return found


def results_of(study: SmallStudy, runs: Runs) -> tuple[Results, list[Edge]]:
    """The figures at the chosen rates, and the choices at an edge of what was tried."""
    results = {}
    edges = []
    tasks = {task.name: task for task in study.grid.tasks}
    for (row, name), (rate, tried) in chosen_rates(study, runs).items():
        key = next(iter(tasks[name].metrics))
        which = 'test' if tasks[name].report == 'test' else 'metric'
        if len(tried) > 1 and rate in (tried[0], tried[-1]):
            edges.append(Edge(row, name, RATE, rate, tuple(tried)))
        for seed in study.grid.seeds:
            run = runs.found.get((name, row, seed, rate))
            if run is not None:
                summary = {
                    'trainable_backbone': run['params'],
                    'trainable_head': run['head'],
                    'backbone_parameters': run['backbone'],
                }
                results[row, name, seed] = Result(State.DONE, {key: run[which]}, summary)
    return results, edges


def run_task(study: SmallStudy, out: Path, task: str, backbone: Backbone = deit_tiny) -> None:
    """Trains what is not done of a task: all rows with the first seed, then with the others."""
    runs = Runs(out, [task])
    rates: dict[str, float] = {}
    data = cache(partial(study.data, task))
    for seed in study.grid.seeds:
        work = _Work(study, runs, task, seed, data, partial(backbone, study.weights))
        for row in (row.name for row in study.grid.rows):
            run = partial(work.run, row)
            if row not in rates:
                begin = study.begins[row]
                rates[row] = (
                    0.0 if begin is None else search(study.rates, begin, run, work.done(row))
                )
            run(rates[row])


class _Work:
    """A task with a seed; reads and plans when the first run that is not done asks for it."""

    def __init__(
        self,
        study: SmallStudy,
        runs: Runs,
        task: str,
        seed: int,
        data: Callable[[], Task],
        backbone: Callable[[int], nn.Module],
    ) -> None:
        self.study, self.runs, self.task, self.seed = study, runs, task, seed
        self._data, self._backbone = data, backbone
        self._attach = lru_cache(1)(self._attached)

    @cached_property
    def setting(self) -> Setting:
        return Setting(
            self._data(),
            self._backbone,
            self.seed,
            iterations=self.study.iterations,
            batch=self.study.tasks[self.task]['batch'],
            head_rate=self.study.head_rate,
        )

    @cached_property
    def remembered(self) -> Remembered | None:
        images = self.study.remembered_images()
        if images is None:
            return None
        return Remembered(self._backbone(images.shape[-1]), self.study.weights, images)

    def done(self, row: str) -> dict[float, Mapping[str, Any]]:
        """Runs of a row that are done, by rate."""
        mine = self.task, row, self.seed
        return {rate: run for (*key, rate), run in self.runs.found.items() if tuple(key) == mine}

    def _attached(self, row: str) -> Attached:
        return self.setting.attach(self.study.recipes[row])

    def run(self, row: str, rate: float) -> Mapping[str, Any]:
        """A run, unless it is done."""
        key = self.task, row, self.seed, rate
        if key not in self.runs.found:
            attached = self._attach(row)
            begin = time.time()
            trained = self.setting.train(
                attached, rate, self.study.recipes[row].head_iterations, self.remembered
            )
            model = self.setting.model()
            self.runs.add(
                dict(
                    task=self.task, method=row, seed=self.seed, rate=rate, **asdict(trained),
                    backbone=sum(p.numel() for p in model.backbone.parameters()),
                    head=sum(p.numel() for p in model.head.parameters()),
                    blocks=attached.blocks, vectors=attached.vectors,
                    seconds=time.time() - begin,
                )
            )  # fmt: skip
            words = (f'{key} {_short(value)}' for key, value in self.runs.found[key].items())
            print(', '.join(words), flush=True)
        return self.runs.found[key]


def _short(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else f'{value}'


def main(arguments: argparse.Namespace, path: Path, backbone: Backbone = deit_tiny) -> None:
    """Does what the command line of ``tools/tables.py`` asks for.

    Args:
        arguments: What `study_options.parser` read.
        path: File of the study.
        backbone: Makes the ViT, ``backbone(weights, size)``.

    Raises:
        ConfigError: If an option is wrong or has no meaning here; nothing has run then.
    """
    for name, default in NOT_HERE.items():
        if getattr(arguments, name) != default:
            raise ConfigError(
                f'--{name.replace("_", "-")} has no meaning for {path.name}: its runs are trained '
                'in memory, by a loop of their own; leave it out'
            )
    whole = read_small_study(path)
    study = whole.narrow(arguments.methods, arguments.tasks, arguments.seeds)
    rows, tasks = ([entry.name for entry in e] for e in (study.grid.rows, study.grid.tasks))
    if arguments.against is not None:
        pick('method', study.grid.rows, [arguments.against])
    out = Path(arguments.out or Path('work_dirs') / 'tables' / study.grid.name)
    Runs(out, tasks)  # damaged lines are found before anything runs
    if arguments.jobs < 1:
        raise ConfigError(f'--jobs {arguments.jobs}: expected at least 1')
    if arguments.dry_run:
        print('\n'.join(f'{task}: {", ".join(rows)}' for task in tasks))
        return
    if not arguments.show:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f'--out {out} cannot be written: {error}') from None
        if arguments.jobs == 1:
            for task in tasks:
                run_task(study, out, task, backbone)
        else:
            threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
            with ProcessPoolExecutor(
                arguments.jobs, get_context('spawn'), torch.set_num_threads, (threads,)
            ) as pool:
                list(pool.map(partial(run_task, study, out, backbone=backbone), tasks))
    results, edges = results_of(study, Runs(out, tasks))
    table = make_table(study.grid, results)
    report = make_report(study.grid, results, edges, against=arguments.against)
    if not arguments.show:
        for name, write in FORMATS.items():
            write_text(out / f'table.{SUFFIXES[name]}', write(table))
        write_report(report, out)
    text = report_text(report) if arguments.report else FORMATS[arguments.format](table)
    print(text, end='')
