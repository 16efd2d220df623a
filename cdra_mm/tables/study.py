"""Runs a grid as far as it is not done, and prints its table."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from mmengine.config import DictAction

from cdra_mm.errors import CDRAError, ConfigError
from cdra_mm.mm.checkpoints.own_files import OwnFiles
from cdra_mm.mm.launch import load_config

from . import small_study, warm_start
from .edges import Edge, edges_of
from .grid import Grid, Row, Task, narrow, pick
from .grid_file import find_grid, read_grid
from .jobs import Commands, Job, choose, final_jobs, search_jobs
from .processes import Start, start_cold
from .results import Result, State, foreign_folders, locked, open_folder, read_result
from .runner import next_command, run_jobs
from .showing import show
from .slots import find_slots
from .small_file import is_small_study

__all__ = ['main']

say = partial(print, flush=True)


def main(arguments: argparse.Namespace, tools: Path) -> None:
    """Does what the command line asks for.

    Args:
        arguments: What `arguments.parser` read.
        tools: Folder of train.py and test.py; grids lie in ``../configs/tables``.

    Raises:
        ConfigError: If an option is wrong, nothing has run then; or if runs failed, after all
            others have run and the table is printed.
    """
    path = find_grid(arguments.table, tools.parent / 'configs' / 'tables')
    if is_small_study(path):
        small_study.main(arguments, path)
        return
    if arguments.on != 'test':
        raise ConfigError(
            f'--on {arguments.on}: only for studies in memory; {path.name} shows what its configs '
            'report'
        )
    whole = read_grid(path)
    grid = narrow(
        whole,
        methods=arguments.methods,
        tasks=arguments.tasks,
        seeds=arguments.seeds,
        overrides=_options(arguments.cfg_options),
        search=not arguments.no_search,
        search_seeds=arguments.search_seeds,
    )
    if arguments.against is not None:
        pick('method', grid.rows, [arguments.against])
    launcher = shlex.split(arguments.launcher or '')
    if arguments.timeout is not None and arguments.timeout <= 0:
        raise ConfigError(f'--timeout {arguments.timeout:g}: expected minutes above 0')
    slots = find_slots(arguments.devices, arguments.jobs, launched=bool(launcher))
    commands = Commands(tools, sys.executable, launcher, arguments.processes)
    out = Path(arguments.out or Path('work_dirs') / 'tables' / grid.name)
    look = arguments.dry_run or arguments.show
    open_folder(out, whole, look=look)
    work = _Study(grid, out)
    if out.is_dir():
        for folder in foreign_folders(out, whole):
            say(f'not of this table, left alone: {folder}')
    if arguments.dry_run:
        work.list(commands)
        return
    failed = 0
    if not look:
        with locked(out) as lock, ExitStack() as stack:
            start: Start = start_cold
            # A launcher may put a command anywhere, where nothing is imported.
            if not (arguments.cold or launcher):
                start = stack.enter_context(warm_start.WarmStart(commands.python, say))
            timeout = None if arguments.timeout is None else 60 * arguments.timeout
            run = partial(
                run_jobs, slots=slots, commands=commands, tell=say, timeout=timeout,
                inherited=[lock], start=start,
                finished=_drop_checkpoints if arguments.drop_checkpoints else None,
            )  # fmt: skip
            failed = work.run(run)
    show(grid, work.done(), work.edges(), arguments, None if look else out)
    if failed:
        raise ConfigError(
            f'{failed} of the runs failed, see above; the same command runs them again'
        )


class _Study:
    """The runs of a grid: first those that choose settings, then those that count."""

    def __init__(self, grid: Grid, out: Path) -> None:
        self.grid, self.out = grid, out
        self.searches: dict[tuple[str, str], list[Job]] = {}
        for job in search_jobs(grid, out):
            self.searches.setdefault((job.row.name, job.task.name), []).append(job)
        self._check_folders()

    def _check_folders(self) -> None:
        """Refuses before any work a folder of another run, and two runs in one folder."""
        jobs = [job for jobs in self.searches.values() for job in jobs]
        for row, task in product(self.grid.rows, self.grid.tasks):
            jobs += self.finals(row, task) or []
        folders: dict[Path, Job] = {}
        for job in jobs:
            other = folders.setdefault(job.folder, job)
            if other is not job:
                raise ConfigError(
                    f'two runs would share the folder {job.folder}: values of search that are '
                    'written alike'
                )
            read_result(job)

    def finals(self, row: Row, task: Task) -> list[Job] | None:
        """The runs that count of a cell; None as long as its settings are not chosen."""
        chosen = self.chosen(row, task)
        return None if chosen is None else final_jobs(self.grid, row, task, chosen, self.out)

    def chosen(self, row: Row, task: Task) -> dict[str, Any] | None:
        """The settings of a cell that were searched for; None as long as not all were tried."""
        if not row.search:
            return {}
        results = [(job, read_result(job)) for job in self.searches[row.name, task.name]]
        if any(result.state is not State.DONE for _, result in results):
            return None
        return choose([(job, result.figures) for job, result in results])[0]

    def edges(self) -> list[Edge]:
        """The settings that were chosen at an edge of what was tried."""
        cells = product(self.grid.rows, self.grid.tasks)
        return [
            edge
            for row, task in cells
            for edge in edges_of(row, task.name, self.chosen(row, task) or {})
        ]

    def run(self, run: Any) -> int:
        """Runs what is not done; returns how many failed or could not be started."""
        failed = len(run(_open([job for jobs in self.searches.values() for job in jobs])))
        jobs: list[Job] = []
        for task, row in product(self.grid.tasks, self.grid.rows):
            try:
                finals = self.finals(row, task)
            except CDRAError as error:
                say(f'  failed: {row.name} {task.name}: {error}')
                failed += 1
                continue
            if finals is None:
                say(f'  {row.name} {task.name}: not all settings could be tried, none is chosen')
                continue
            if row.search:
                say(f'  {row.name} {task.name}: validation chose {_chosen(finals[0])}')
                for edge in edges_of(row, task.name, finals[0].chosen):
                    say(f'  {edge.text}')
            jobs += finals
        return failed + len(run(_open(jobs)))

    def list(self, commands: Commands) -> None:
        """Prints the runs, how far each is, and the command that comes next."""
        counts: dict[str, int] = {}
        jobs = [job for jobs in self.searches.values() for job in jobs]
        for task, row in product(self.grid.tasks, self.grid.rows):
            finals = self.finals(row, task)
            if finals is None:
                seeds = ', '.join(map(str, self.grid.seeds))
                say(f'{row.name} {task.name} seeds {seeds}: after the search')
                counts['after a search'] = counts.get('after a search', 0) + len(self.grid.seeds)
            jobs += finals or []
        for job in jobs:
            result = read_result(job)
            counts[result.state.value] = counts.get(result.state.value, 0) + 1
            say(f'{job.label} ({job.stage}): {result.state.value}')
            if result.problem:
                say(f'    {result.problem}')
            if result.state is not State.DONE:
                say(f'    {shlex.join(next_command(job, result, commands))}')
        told = ', '.join(f'{count} {state}' for state, count in counts.items())
        say(f'{sum(counts.values())} runs: {told}')

    def done(self) -> dict[tuple[str, str, int], Result]:
        """The runs that count and are done."""
        found = {}
        for row, task in product(self.grid.rows, self.grid.tasks):
            for job in self.finals(row, task) or []:
                result = read_result(job)
                if result.state is State.DONE:
                    found[row.name, task.name, job.seed] = result
        return found


def _drop_checkpoints(job: Job) -> None:
    """Deletes the checkpoints that the run of a job has written; any other file stays.

    Where the run keeps them and how it names them stands in its config. A run that is done stays
    done, whatever becomes of its checkpoints.
    """
    try:
        cfg = load_config(job.task.config, job.option_texts, final_run=job.is_final_run)
        cfg.work_dir = str(job.folder)
        for path in OwnFiles.of_config(cfg).written():
            path.unlink()
    except (CDRAError, OSError) as error:
        say(f'  {job.label}: checkpoints stay: {error}')


def _open(jobs: list[Job]) -> list[Job]:
    return [job for job in jobs if read_result(job).state is not State.DONE]


def _chosen(job: Job) -> str:
    return ', '.join(f'{key}={value}' for key, value in job.chosen.items())


def _options(texts: list[str]) -> Mapping[str, Any]:
    """``key=value`` texts as settings, read as train.py reads them.

    Raises:
        ConfigError: If one has no value.
    """
    for text in texts:
        if '=' not in text:
            raise ConfigError(f'--cfg-options {text}: expected key=value')
    options = argparse.Namespace(values={})
    DictAction(['--cfg-options'], 'values', nargs='+')(None, options, list(texts))
    return options.values or {}
