"""Starts runs from a process that has imported what they need: the client of `warm_server`.

A training or test of a small model spends more time on importing torch and OpenMMLab than on all
else. Here that is done once for a table. A run started so is like one of `processes.start_cold` in
everything that can be seen of it: session, log, environment, exit code, inherited files.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from .processes import GRACE, Process, end, start_cold
from .warm_server import START

__all__ = ['WarmStart']

DEVICES = 'CUDA_VISIBLE_DEVICES'
IMPORTS = 'cdra_mm.mm.run_imports'
PAUSE = 0.02  # seconds between two looks at a run that is waited for
ROOT = Path(__file__).resolve().parents[2]
# Asked through NVML, CUDA is not started by the question whether it is there.
FOR_THE_SERVER = {'PYTORCH_NVML_BASED_CUDA_CHECK': '1', 'OPENBLAS_NUM_THREADS': '1'}


class WarmStart:
    """Starts commands by forking; a `processes.Start`.

    As a context: at its end nothing that was started is left.

    Args:
        python: The interpreter; commands are it, a script and the script's arguments.
        tell: Takes a line where commands have to be started cold.
    """

    def __init__(self, python: str, tell: Callable[[str], Any] = print) -> None:
        self.python, self.tell = python, tell
        # By what their runs share of the environment.
        self.servers: dict[frozenset[tuple[str, str]], _Server] = {}
        self.refused = False

    def __enter__(self) -> WarmStart:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers.values():
            server.close()

    def __call__(
        self,
        words: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        inherited: Sequence[int],
    ) -> Process:
        """Starts a command, see `processes.start_cold`."""
        server = None if self.refused else self._server(environment, inherited)
        if server is None:
            return start_cold(words, log, environment, inherited)
        log.open('ab').close()  # fails here, as that of a cold start does
        return server.start(words[1:], log, environment)

    def _server(self, environment: Mapping[str, str], inherited: Sequence[int]) -> _Server | None:
        """The server of an environment, a new one if it is gone; None where there can be none."""
        # Which GPU is said to the child; whether there is one decides what the imports find.
        shared = {**environment, DEVICES: 'some' if environment.get(DEVICES) else ''}
        if DEVICES not in environment:
            del shared[DEVICES]
        key = frozenset(shared.items())
        server = self.servers.get(key)
        if server is None or server.is_gone:
            if server is not None:
                server.close()
            server = self.servers[key] = _Server(self.python, environment, inherited)
            reason = server.greet()
            if reason:
                self.refused = True
                self.tell(f'  runs are started one by one, each with its own imports: {reason}')
                return None
        return server


class _Server:
    """A process of `warm_server`, and the runs that were forked from it."""

    def __init__(
        self, python: str, environment: Mapping[str, str], inherited: Sequence[int]
    ) -> None:
        ours, theirs = socket.socketpair()
        self.connection, self.received = ours, b''
        self.runs: dict[int, _Forked] = {}
        self.is_asked = self.is_gone = False
        self.said: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        with theirs:
            self.process = subprocess.Popen(
                [python, '-c', START, str(ROOT), str(theirs.fileno()), IMPORTS],
                stdin=subprocess.DEVNULL,
                stdout=self.said,
                stderr=subprocess.STDOUT,
                env={**environment, **_missing(environment)},
                start_new_session=True,
                pass_fds=(theirs.fileno(), *inherited),
            )

    def greet(self) -> str:
        """Waits for the imports; returns why nothing can be forked, '' where all is well."""
        message = self._next()
        if message is None:
            code = self.process.wait()
            lines = self._output().split('\n')
            told = [line.strip() for line in lines if line.strip()] or ['it printed nothing']
            return f'the process that imports for all ended (exit code {code}): {told[-1]}'
        return str(message['unfit'])

    def start(self, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Process:
        """Forks a run.

        Raises:
            OSError: If the server has ended.
        """
        request = {'words': list(words), 'log': str(log.resolve()), 'environment': {**environment}}
        self.is_asked = True
        try:
            self.connection.sendall(json.dumps(request).encode() + b'\n')
            return self._answer()
        except (BrokenPipeError, EOFError):
            self.is_gone = True
            raise OSError('the process that runs are forked from was ended from outside') from None

    def _answer(self) -> _Forked:
        while True:
            message = self._next()
            if message is None:
                raise EOFError
            self._note(message)
            if 'started' in message:
                return self.runs[message['started']]

    def look(self) -> None:
        """Takes in what the server has said meanwhile."""
        while not self.is_gone and (self._is_whole() or self._is_heard()):
            self._note(self._next())

    def close(self) -> None:
        """Ends the server, and runs that are still there."""
        if self.is_asked and not self.is_gone:
            # What interrupted us came between a request and its answer: that run is ended, too.
            self.connection.settimeout(GRACE)
            with suppress(EOFError, TimeoutError):
                self._answer()
            self.connection.settimeout(None)
        end(list(self.runs.values()))
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.connection.close()
        self.said.close()

    def _next(self) -> dict[str, Any] | None:
        """The next message; None at the end of the stream."""
        while not self._is_whole():
            try:
                data = self.connection.recv(1 << 16)
            except ConnectionResetError:
                data = b''
            if not data:
                return None
            self.received += data
        line, self.received = self.received.split(b'\n', 1)
        return dict(json.loads(line))

    def _is_whole(self) -> bool:
        return b'\n' in self.received

    def _is_heard(self) -> bool:
        return bool(select.select([self.connection], [], [], 0)[0])

    def _note(self, message: Mapping[str, Any] | None) -> None:
        if message is None:
            self.is_gone = True
        elif 'started' in message:
            self.is_asked = False
            self.runs[message['started']] = _Forked(self, message['started'])
        else:
            self.runs.pop(message['ended']).code = message['code']

    def _output(self) -> str:
        self.said.seek(0)
        return self.said.read().decode(errors='replace')


class _Forked:
    """A run that is a child of the server: its exit code comes through the server."""

    def __init__(self, server: _Server, pid: int) -> None:
        self.server, self.pid = server, pid
        self.code: int | None = None

    def poll(self) -> int | None:
        """See `processes.Process`; where the server was ended from outside, so is the run."""
        if self.code is None:
            self.server.look()
        if self.code is None and self.server.is_gone:
            # Nobody can be told how it ends.
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.code = -signal.SIGKILL
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        """See `processes.Process`."""
        limit = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if limit is not None and time.monotonic() >= limit:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(PAUSE)
        return code


def _missing(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in FOR_THE_SERVER.items() if key not in environment}
