"""Runs jobs side by side, one a slot, and survives those that fail."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from cdra_mm.errors import CDRAError, ConfigError
from cdra_mm.last_checkpoint import pointed_at
from cdra_mm.progress import time_left

from .jobs import Commands, Job
from .processes import Start, end, start_cold
from .results import Result, State, claim, read_result

__all__ = ['LOG', 'Failure', 'Slot', 'next_command', 'run_jobs']

LOG = 'tables.log'
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PAUSE = 0.1  # seconds between two looks at the runs


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time.

    Attributes:
        name: For example ``gpu 0``.
        environment: Variables that a run gets there.
    """

    name: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Failure:
    """A job that did not end as it should.

    Attributes:
        job: The job.
        reason: Why, in one line.
    """

    job: Job
    reason: str


def next_command(job: Job, result: Result, commands: Commands) -> list[str]:
    """What is to be run next of a job that is not done."""
    if result.state is State.TRAINED:
        return commands.test(job, _last_checkpoint(job.folder))
    return commands.train(job, resume=result.state is State.BROKEN_OFF)


def run_jobs(
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    commands: Commands,
    *,
    tell: Callable[[str], Any] = print,
    timeout: float | None = None,
    inherited: Sequence[int] = (),
    start: Start = start_cold,
    finished: Callable[[Job], Any] | None = None,
) -> list[Failure]:
    """Runs jobs until none is left.

    Args:
        jobs: What to run; those that are done are passed over.
        slots: Where.
        commands: How.
        tell: Takes a line at every start and end of a job.
        timeout: Seconds that one command may take, None for any.
        inherited: Open files that the runs keep open.
        start: Makes a process of a command.
        finished: Called with every job that gets done.
    """
    waiting, free = deque(jobs), deque(slots)
    running: list[_Run] = []
    failures: list[Failure] = []
    count = done = 0
    begun = time.monotonic()

    def fail(job: Job, reason: str) -> None:
        failures.append(Failure(job, reason))
        tell(f'  failed: {job.label}: {reason}')

    with _ended_at_exit(running):
        while waiting or running:
            while waiting and free:
                job, slot = waiting.popleft(), free[0]
                count += 1
                try:
                    run = _Run(job, slot, commands, start, inherited)
                except (CDRAError, OSError) as error:
                    fail(job, str(error))
                    continue
                running.append(run)
                free.popleft()
                tell(f'[{count}/{len(jobs)}] {job.label}: {run.doing} on {slot.name}')
            for run in list(running):
                outcome = run.look(timeout)
                if outcome is None:
                    continue
                if outcome.goes_on:
                    tell(f'  {run.job.label}: {outcome.text}')
                    continue
                running.remove(run)
                free.append(run.slot)
                if outcome.failed:
                    fail(run.job, outcome.text)
                else:
                    done += 1
                    tell(f'  done: {run.job.label}: {outcome.text}')
                    if finished:
                        finished(run.job)
                left = len(waiting) + len(running)
                if left:
                    # As if those under way had just begun: rather too long than too short.
                    each = (time.monotonic() - begun) / (done + len(failures))
                    tell(f'  {done} of {len(jobs)} done, about {time_left(each * left)}')
            if running:
                time.sleep(PAUSE)
    return failures


@dataclass(frozen=True)
class _Outcome:
    """What became of a command."""

    text: str
    failed: bool = False
    goes_on: bool = False


class _Run:
    """A job in its slot: its training, then its test if it has one."""

    def __init__(
        self, job: Job, slot: Slot, commands: Commands, start: Start, inherited: Sequence[int]
    ) -> None:
        self.job, self.slot, self.commands = job, slot, commands
        self.start, self.inherited = start, inherited
        self.begun = time.monotonic()
        self.result = read_result(job)
        self.doing = {
            State.BROKEN_OFF: 'going on',
            State.DAMAGED: f'starting again ({self.result.problem})',
            State.TRAINED: 'testing',
        }.get(self.result.state, 'started')
        claim(job, self.result)
        self._start()

    def _start(self) -> None:
        words = next_command(self.job, self.result, self.commands)
        self.started = time.monotonic()
        self.offset = _size(self.log)
        environment = {**os.environ, 'PYTHONUNBUFFERED': '1', **self.slot.environment}
        self.process = self.start(words, self.log, environment, self.inherited)

    @property
    def log(self) -> Path:
        return self.job.folder / LOG

    def look(self, timeout: float | None) -> _Outcome | None:
        """None while the command runs; then what became of it."""
        code = self.process.poll()
        if code is None:
            if timeout is None or time.monotonic() - self.started < timeout:
                return None
            end([self.process])
            return self._failure(f'took longer than {timeout:g} s and was ended')
        if code:
            how = f'exit code {code}' if code > 0 else f'ended by {signal.Signals(-code).name}'
            return self._failure(f'{how}: {self._last_line()}')
        before = self.result.state
        try:
            self.result = read_result(self.job)
            if self.result.state is State.DONE:
                return _Outcome(self.told())
            if self.result.state is State.TRAINED and before is not State.TRAINED:
                self._start()
                return _Outcome('testing', goes_on=True)
        except (CDRAError, OSError) as error:
            return self._failure(str(error))
        problem = self.result.problem or f'it left no {self.job.metrics} in summary.json'
        return self._failure(f'ended without an error, but {problem}')

    def _failure(self, reason: str) -> _Outcome:
        return _Outcome(f'{reason}; log: {self.log}', failed=True)

    def told(self) -> str:
        figures = ', '.join(
            f'{self.job.task.metrics[key]} {value:.2f}'
            for key, value in self.result.figures.items()
        )
        return f'{figures} ({(time.monotonic() - self.begun) / 60:.1f} min)'

    def _last_line(self) -> str:
        with self.log.open('rb') as log:
            log.seek(self.offset)
            lines = log.read().decode(errors='replace').split('\n')
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else 'it printed nothing'


@contextmanager
def _ended_at_exit(running: list[_Run]) -> Iterator[None]:
    """No run outlives us: neither an error, nor Ctrl-C, nor SIGTERM leaves one behind."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    # Only the main thread may set handlers, and only there do interruptions arrive.
    numbers = SIGNALS if current_thread() is main_thread() else ()
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave runs behind
        end([run.process for run in running])
        for number, handler in before.items():
            signal.signal(number, handler)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _last_checkpoint(folder: Path) -> str:
    path = pointed_at(folder)
    if path is None:
        raise ConfigError(f'{folder} has no checkpoint to test: delete the folder to train again')
    return str(path)
