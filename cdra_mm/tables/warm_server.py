"""The process that has imported what every run imports, and becomes a run by forking.

It is a program of its own (`START`), started by `warm_start`: nothing has used a GPU in it and no
thread runs, so a fork of it is as good as a fresh interpreter. A request names a Python script with
its arguments; the child takes a session, the log and the environment of its own, and then runs the
script as ``python SCRIPT ...`` would: a failing script ends it with its traceback and exit code.

What a run reads from the environment while its packages are imported (numbers of threads) is that
of the server, which `warm_start` gives what all its runs share. NumPy's own BLAS keeps the one
thread that it has here.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ['START', 'main']

# The folder of the package goes in front for its own import alone: a run looks where it would look.
START = (
    'import sys; sys.path.insert(0, sys.argv[1]); import cdra_mm; del sys.path[0]; '
    'from cdra_mm.tables.warm_server import main; main(int(sys.argv[2]), sys.argv[3])'
)
PAUSE = 0.05  # seconds between two looks at the runs


def main(number: int, imports: str) -> None:
    """Imports, answers requests until there is nobody to ask, and in each child runs its script.

    Args:
        number: The file number of a connected stream socket.
        imports: A module with a function ``import_all``; '' for nothing.
    """
    connection = socket.socket(fileno=number)
    if not _is_safe_path():
        del sys.path[0]  # the folder that it was started in
    if imports:
        import_module(imports).import_all()
    reason = _unfit()
    _send(connection, {'unfit': reason})
    if reason:
        return
    request = _serve(connection)
    if request is None:
        os._exit(0)  # nothing of ours is left to be tidied up
    # A child. Up to here no frame below this one has a claim to be unwound.
    _become(request)


def _unfit() -> str:
    """Why this process must not be forked, '' where it may."""
    # What the imports ask about GPUs may have started CUDA, which no child can use then. Where no
    # GPU is to be seen that is nothing to lose.
    torch = sys.modules.get('torch')
    if torch and torch.cuda.is_available() and _forked(torch.cuda._is_in_bad_fork):
        return 'CUDA was started by the imports'
    tasks = Path('/proc/self/task')
    threads = len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()
    return f'the imports started {threads - 1} threads' if threads > 1 else ''


def _forked(question: Callable[[], bool]) -> bool:
    """What a child says; only children are told what cannot be used in them."""
    pid = os.fork()
    if pid == 0:
        os._exit(question())
    return os.waitpid(pid, 0)[1] != 0


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """The request of a child in the child; None in the server once nobody asks any more."""
    running: set[int] = set()
    received = b''
    while True:
        readable, _, _ = select.select([connection], [], [], PAUSE if running else None)
        if readable:
            try:
                data = connection.recv(1 << 16)
            except ConnectionResetError:
                data = b''
            if not data:
                return None  # runs that are under way go on, as they do without us
            received += data
        while b'\n' in received:
            line, received = received.split(b'\n', 1)
            pid = _fork(connection)
            if pid == 0:
                return dict(json.loads(line))
            running.add(pid)
            _send(connection, {'started': pid})
        for pid in list(running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                running.remove(pid)
                _send(connection, {'ended': pid, 'code': os.waitstatus_to_exitcode(status)})


def _fork(connection: socket.socket) -> int:
    """Forks; returns once the child has a session of its own, in the child 0."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        connection.close()
        os.close(reading)
    os.close(writing)
    if pid:
        os.read(reading, 1)  # ends when the child has closed its side
        os.close(reading)
    return pid


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    with suppress(BrokenPipeError):  # read as the end of the stream next
        connection.sendall(json.dumps(message).encode() + b'\n')


def _become(request: Mapping[str, Any]) -> None:
    """Runs the script of a request as the interpreter would."""
    sys.stdout.flush()
    with Path(request['log']).open('ab') as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    os.environ.clear()
    os.environ.update(request['environment'])
    _draw_anew()
    script, *arguments = request['words']
    sys.argv = [script, *arguments]
    if not _is_safe_path():
        sys.path.insert(0, str(Path(script).resolve().parent))
    runpy.run_path(script, run_name='__main__')


def _draw_anew() -> None:
    """Random numbers as a fresh process would draw them, not those of all its siblings.

    Python's own generator sees to that itself.
    """
    if numpy := sys.modules.get('numpy'):
        numpy.random.seed()
    if torch := sys.modules.get('torch'):
        torch.default_generator.seed()


def _is_safe_path() -> bool:
    """Whether Python looks for nothing beside a script (``python -P``, since 3.11)."""
    return bool(getattr(sys.flags, 'safe_path', False))
