"""What a run left in its folder: nothing but files says what is done.

``job.json`` names the settings that the folder is for, and is written before the run starts;
``summary.json`` is written at its end by `cdra_mm.mm.CDRAHook`.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from cdra_mm.errors import ConfigError
from cdra_mm.storage import write_text
from cdra_mm.storage.strict_json import strict_json

from .grid import Grid
from .jobs import Job

__all__ = [
    'Result',
    'State',
    'claim',
    'foreign_folders',
    'locked',
    'open_folder',
    'read_result',
]

JOB, SUMMARY, GRID, LOCK = 'job.json', 'summary.json', 'grid.json', '.lock'
FORMAT = 1


class State(Enum):
    """How far a run got."""

    NEW = 'not run'
    BROKEN_OFF = 'broken off'
    DAMAGED = 'damaged'
    TRAINED = 'trained, not tested'
    DONE = 'done'


@dataclass(frozen=True)
class Result:
    """What is known of a run.

    Attributes:
        state: How far it got.
        figures: Its metrics, where it is done.
        summary: Its summary, where that can be read.
        problem: What is wrong with its files, '' if nothing is.
    """

    state: State
    figures: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ''


def read_result(job: Job) -> Result:
    """Reads the folder of a job.

    A run that broke off goes on from its last checkpoint; a damaged one, whose summary is half
    written or lacks its figures, starts again.

    Raises:
        ConfigError: If the folder holds another run.
    """
    # A name with a dot in front is a file that was being written.
    if not job.folder.is_dir() or all(e.name.startswith('.') for e in job.folder.iterdir()):
        return Result(State.NEW)
    _check_owner(job)
    path = job.folder / SUMMARY
    if not path.is_file():
        return Result(State.BROKEN_OFF)
    try:
        summary = strict_json(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return Result(State.DAMAGED, problem=f'{path} is half written')
    if not isinstance(summary, Mapping) or 'method' not in summary:
        return Result(State.DAMAGED, problem=f'{path} does not name its method')
    if summary['method'] != job.row.method['type']:
        raise ConfigError(
            f'{path} is of method {summary["method"]!r}, expected {job.row.method["type"]!r}: '
            f'another run wrote into {job.folder}; move it away, or name another --out'
        )
    if job.tested and 'test_metrics' not in summary:
        return Result(State.TRAINED, summary=summary)
    figures = summary.get(job.metrics)
    if not isinstance(figures, Mapping):
        figures = {}
    lacking = [key for key in job.task.metrics if not _is_number(figures.get(key))]
    if lacking:
        found = ', '.join(figures) or 'none'
        return Result(
            State.DAMAGED,
            problem=f'{path} has no number for {lacking[0]} in {job.metrics} (there: {found})',
        )
    return Result(State.DONE, {key: float(figures[key]) for key in job.task.metrics}, summary)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_owner(job: Job) -> None:
    path = job.folder / JOB
    try:
        found = strict_json(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise ConfigError(
            f'{job.folder} is not a folder of tables.py (it has no {JOB}): move it away, or name '
            'another --out'
        ) from None
    except (OSError, ValueError):
        raise ConfigError(
            f'{path} cannot be read: it does not say which run its folder holds; delete '
            f'{job.folder}, or name another --out'
        ) from None
    wanted = {'format': FORMAT, **job.identity}
    if found == wanted:
        return
    raise ConfigError(
        f'{job.folder} holds a run with other settings ({_difference(found, wanted)}): delete it, '
        'or name another --out'
    )


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    """The first entry in which two records of a job differ."""
    if not isinstance(found, Mapping):
        return f'{JOB} is no record of a run'
    pairs = [({k: found.get(k), **_options(found)}, {k: wanted[k], **_options(wanted)})
             for k in wanted if k != 'options']  # fmt: skip
    for there, here in pairs:
        for key in dict.fromkeys([*here, *there]):
            if there.get(key) != here.get(key):
                return f'{key} is {there.get(key)} there, {here.get(key)} here'
    return f'{JOB} has further entries'


def _options(record: Mapping[str, Any]) -> Mapping[str, Any]:
    options = record.get('options')
    return options if isinstance(options, Mapping) else {}


def claim(job: Job, result: Result) -> None:
    """Makes the folder of a job and says in it what it is for; a damaged summary is set aside.

    Raises:
        CheckpointError: If the folder cannot be written.
    """
    if result.state is State.DAMAGED:
        (job.folder / SUMMARY).replace(job.folder / f'{SUMMARY}.damaged')
    record = {'format': FORMAT, **job.identity}
    write_text(job.folder / JOB, json.dumps(record, indent=1) + '\n')


def open_folder(out: Path, grid: Grid, *, look: bool = False) -> None:
    """Checks that a results folder is of this grid; makes it unless it is only looked at.

    Raises:
        ConfigError: If it is of another grid, is no results folder, or cannot be written.
    """
    path = out / GRID
    if out.exists() and not out.is_dir():
        raise ConfigError(f'--out {out} is a file: expected a folder')
    if path.is_file():
        try:
            found = strict_json(path.read_text(encoding='utf-8'))
            name = found['grid']
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f'{path} is damaged: delete it, or name another --out') from None
        if name != grid.name:
            raise ConfigError(
                f'--out {out} holds results of the grid {name!r}, not of {grid.name!r}: name '
                'another folder'
            )
        return
    others = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    if [name for name in others if name != LOCK]:
        raise ConfigError(
            f'--out {out} is no results folder (it has no {GRID}, but {others[0]}): name a new or '
            'empty one'
        )
    if not look:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({'format': FORMAT, 'grid': grid.name}) + '\n')
        except (OSError, ValueError) as error:
            raise ConfigError(f'--out {out} cannot be written: {error}') from None


def foreign_folders(out: Path, grid: Grid) -> list[Path]:
    """Folders in a results folder that no row and task of the (whole) grid owns."""
    rows, tasks = {row.name for row in grid.rows}, {task.name for task in grid.tasks}
    found = []
    for row in sorted(entry for entry in out.iterdir() if entry.is_dir()):
        if row.name not in rows:
            found.append(row)
        else:
            found += sorted(e for e in row.iterdir() if e.is_dir() and e.name not in tasks)
    return found


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """Keeps a results folder to one process and the runs that it starts.

    Runs inherit the file that is yielded. As long as one is alive the lock holds, even when the
    process that started it was killed: no two runs ever write into one folder.

    Raises:
        ConfigError: If somebody else is at work there.
    """
    handle = os.open(out / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f'--out {out}: another tables.py, or a run that one left behind, is at work there; '
                'wait for it, end it, or name another folder'
            ) from None
        yield handle
    finally:
        os.close(handle)
