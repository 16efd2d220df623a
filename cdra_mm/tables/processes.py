"""A command as a process of its own: how it is started, and how it is ended with all it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

__all__ = ['Process', 'Start', 'end', 'start_cold']

GRACE = 10.0  # seconds between asking a run to end and ending it


class Process(Protocol):
    """What is asked of a process; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int:
        """Its number, and that of its process group."""
        ...

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its exit code.

        Raises:
            subprocess.TimeoutExpired: If it still runs then.
        """
        ...


# Words of the command, its log, the whole environment, open files that it keeps open -> a process
# in a session of its own, so that Ctrl-C reaches it through us, once.
Start = Callable[[Sequence[str], Path, Mapping[str, str], Sequence[int]], Process]


def start_cold(
    words: Sequence[str], log: Path, environment: Mapping[str, str], inherited: Sequence[int]
) -> Process:
    """Starts a command as a fresh process.

    Args:
        words: The command.
        log: What it prints is appended there.
        environment: All its variables.
        inherited: Open files that it keeps open.

    Raises:
        OSError: If there is no such program, or the log cannot be written.
    """
    with log.open('ab') as out:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            pass_fds=tuple(inherited),
        )


def end(processes: Sequence[Process]) -> None:
    """Asks processes to end, with all that they have started, and ends those that do not."""
    ended = [process for process in processes if process.poll() is None]
    for number in (signal.SIGTERM, signal.SIGKILL):
        # The second goes to all groups: what a run has started may outlive it.
        for process in ended:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        limit = time.monotonic() + GRACE
        for process in ended:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0, limit - time.monotonic()))
