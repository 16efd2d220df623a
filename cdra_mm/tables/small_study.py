"""A whole study in memory: methods and tasks of a file, trained on images that are held there.

What ``tools/tables.py`` does for a file of `small_file`. A run costs its training and nothing else:
no start of an interpreter, no reading of files, no augmentation. Each task has a file of JSON
lines, ``DIR/TASK.jsonl``, a run each; a run that is there is not run again. Tasks run side by side:
``--jobs 2`` processes on the CPU, or ``--jobs 3`` on each GPU.

Rates are chosen on validation images with the first seed, or by the mean of the first few
(``--search-seeds``), from where a row begins up and down the ladder until a worse one stands on
each side of the best; the other seeds take it. What is reported is of the test images, which
nothing was chosen on.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import cache, cached_property, lru_cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdra_mm.benchmark.small_tasks import Task
from cdra_mm.benchmark.small_training import deit_tiny
from cdra_mm.errors import ConfigError

from .edges import Edge, edges_of
from .grid import pick
from .results import Result, State
from .runner import Slot
from .showing import show
from .slots import find_slots, visible_gpus
from .small_file import RATE, SmallStudy, read_small_study
from .small_memory import Remembered
from .small_recipes import Attached
from .small_records import Runs, search, worth
from .small_runs import Setting
from .table import Results

__all__ = ['main', 'results_of', 'run_task']

Backbone = Callable[[str, int], nn.Module]
# What the runs of a grid need and these do not.
NOT_HERE: Mapping[str, Any] = dict(
    cfg_options=[], no_search=False, launcher=None, processes='none', cold=False,
    timeout=None, drop_checkpoints=False,
)  # fmt: skip


def results_of(study: SmallStudy, runs: Runs) -> tuple[Results, list[Edge]]:
    """Figures at the best rates of the seeds that search, and choices at an edge of what was tried.

    A row and task without a rate that each of these has run has no figure.
    """
    results = {}
    edges: list[Edge] = []
    for row, task in product(study.grid.rows, study.grid.tasks):
        tried = runs.of_all(task.name, row.name, study.grid.choosing)
        if not tried:
            continue
        rate = max(tried, key=lambda rate: worth(tried[rate]))
        edges += edges_of(replace(row, search={RATE: tuple(tried)}), task.name, {RATE: rate})
        which = 'test' if task.report == 'test' else 'metric'
        for seed in study.grid.seeds:
            run = runs.of(task.name, row.name, seed).get(rate)
            if run is not None:
                summary = {
                    'trainable_backbone': run['params'],
                    'trainable_head': run['head'],
                    'backbone_parameters': run['backbone'],
                }
                figures = {next(iter(task.metrics)): run[which]}
                results[row.name, task.name, seed] = Result(State.DONE, figures, summary)
    return results, edges


def run_task(
    study: SmallStudy,
    out: Path,
    task: str,
    backbone: Backbone = deit_tiny,
    device: str = 'cpu',
) -> None:
    """Trains what is not done of a task: all rows with the seeds that search, then the others."""
    runs = Runs(out, [task])
    data = cache(partial(study.data, task))

    def work_of(seed: int) -> _Work:
        return _Work(study, runs, task, seed, data, partial(backbone, study.weights), device)

    grid = study.grid
    rates = _searched(study, [work_of(seed) for seed in grid.choosing])
    for seed in grid.seeds[grid.search_seeds :]:
        work = work_of(seed)
        for row, rate in rates.items():
            work.run(row, rate)


def _searched(study: SmallStudy, works: Sequence[_Work]) -> dict[str, float]:
    """The rate of each row, 0 where nothing is searched for; it has run with each of the seeds."""
    rates = {}
    for row in (row.name for row in study.grid.rows):

        def run(rate: float, row: str = row) -> list[Mapping[str, Any]]:
            return [work.run(row, rate) for work in works]

        begin, rate = study.begins[row], 0.0
        if begin is not None:
            done = works[0].runs.of_all(works[0].task, row, study.grid.choosing)
            rate = search(study.rates, begin, run, done)
        run(rate)
        rates[row] = rate
    return rates


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
        device: str,
    ) -> None:
        self.study, self.runs, self.task, self.seed = study, runs, task, seed
        self._data, self._backbone, self._device = data, backbone, device
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
            device=self._device,
        )

    @cached_property
    def remembered(self) -> Remembered | None:
        images = self.study.remembered_images(self.task)
        if images is None:
            return None
        backbone = self._backbone(images.shape[-1]).to(self._device)
        return Remembered(backbone, self.study.weights, images.to(self._device))

    def _attached(self, row: str) -> Attached:
        return self.setting.attach(self.study.recipe(row, self.task))

    def run(self, row: str, rate: float) -> Mapping[str, Any]:
        """A run, unless it is done."""
        key = self.task, row, self.seed, rate
        if key not in self.runs.found:
            attached = self._attach(row)
            begin = time.time()
            recipe = self.study.recipe(row, self.task)
            trained = self.setting.train(attached, rate, recipe, self.remembered)
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
    study = whole.narrow(
        arguments.methods, arguments.tasks, arguments.seeds, arguments.search_seeds
    )
    rows, tasks = ([entry.name for entry in e] for e in (study.grid.rows, study.grid.tasks))
    if arguments.against is not None:
        pick('method', study.grid.rows, [arguments.against])
    out = Path(arguments.out or Path('work_dirs') / 'tables' / study.grid.name)
    Runs(out, tasks)  # damaged lines are found before anything runs
    slots = find_slots(arguments.devices, arguments.jobs)
    if arguments.dry_run:
        print('\n'.join(f'{task}: {", ".join(rows)}' for task in tasks))
        return
    if not arguments.show:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f'--out {out} cannot be written: {error}') from None
        _run_tasks(study, out, tasks, backbone, slots)
    looked = arguments.show or arguments.on == 'validation'
    if arguments.on == 'validation':
        told = tuple(replace(task, report='validation') for task in study.grid.tasks)
        study = replace(study, grid=replace(study.grid, tasks=told))
    results, edges = results_of(study, Runs(out, tasks))
    show(study.grid, results, edges, arguments, None if looked else out)


def _run_tasks(
    study: SmallStudy, out: Path, tasks: Sequence[str], backbone: Backbone, slots: Sequence[Slot]
) -> None:
    """Each task in a process of its own, so many at a time; in this one, if that is one."""
    # `find_slots` gives places on GPUs, or on the CPU.
    device = 'cuda' if all(slot.environment['CUDA_VISIBLE_DEVICES'] for slot in slots) else 'cpu'
    if len(slots) == 1 and device == 'cpu':
        for task in tasks:
            run_task(study, out, task, backbone)
        return
    context = get_context('spawn')
    places = context.SimpleQueue()
    for slot in slots:
        places.put(dict(slot.environment))
    threads = max(1, (os.cpu_count() or 1) // len(slots))
    with ProcessPoolExecutor(len(slots), context, _take_place, (places, threads)) as pool:
        list(pool.map(partial(run_task, study, out, backbone=backbone, device=device), tasks))


def _take_place(places: Any, threads: int) -> None:
    """What is imported has asked for GPUs: too late for variables of the environment."""
    gpu = places.get()['CUDA_VISIBLE_DEVICES']
    if gpu:
        torch.cuda.set_device(visible_gpus().index(gpu))
    torch.set_num_threads(threads)
