"""One training run at a time in a work directory.

Two runs in one directory mix their plans and checkpoints. The first process of a run holds a lock
on a file there, which the system takes back when the process ends in whatever way: a run that was
killed can be resumed at once. The file stays, and says who holds or held it.
"""

from __future__ import annotations

import json
import os
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path

from mmengine.logging import MMLogger

from cdra_mm.errors import ConfigError

try:
    import fcntl
except ImportError:  # no such thing on this system: see `hold_work_dir`
    fcntl = None  # type: ignore[assignment]

__all__ = ['LOCK', 'WorkLock', 'hold_work_dir']

LOCK = '.cdra_lock'
_HELD: weakref.WeakValueDictionary[str, WorkLock] = weakref.WeakValueDictionary()


class WorkLock:
    """A lock that is held as long as this object lives, and no longer than the process.

    Args:
        handle: The open file; None where the file system has no locks.
    """

    def __init__(self, handle: int | None) -> None:
        self._handle = handle

    def release(self) -> None:
        """Gives the lock back."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):
                os.close(handle)

    def __del__(self) -> None:
        self.release()


def hold_work_dir(work_dir: str | Path) -> WorkLock:
    """Keeps a work directory to this process; asking twice in a process gives the same lock.

    Where the system has no such locks it is said once, and the run goes on without.

    Raises:
        ConfigError: If another process trains there; names it.
    """
    path = Path(work_dir).resolve() / LOCK
    held = _HELD.get(str(path))
    if held is None:
        held = _HELD[str(path)] = WorkLock(_lock(path, work_dir))
    return held


def _lock(path: Path, work_dir: str | Path) -> int | None:
    try:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0)
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        _without(work_dir, error)
        return None
    try:
        if fcntl is None:
            raise OSError('this system has no file locks')
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(handle)
        os.close(handle)
        raise ConfigError(
            f'work directory {work_dir} is in use: {holder} trains there. Two runs would mix their '
            'plans and checkpoints: wait for it, end it, or name another with --work-dir'
        ) from None
    except OSError as error:
        os.close(handle)
        _without(work_dir, error)
        return None
    entry = {
        'host': socket.gethostname(),
        'process': os.getpid(),
        'since': time.strftime('%Y-%m-%d %H:%M:%S'),
    }
    with suppress(OSError):  # a full disk: then nobody knows who it is
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(entry) + '\n').encode(), 0)
    return handle


def _without(work_dir: str | Path, error: OSError) -> None:
    MMLogger.get_current_instance().warning(
        f'work directory {work_dir} cannot be locked ({error}): that no other run writes there is '
        'not looked after'
    )


def _holder(handle: int) -> str:
    try:
        entry = json.loads(os.pread(handle, 4096, 0))
        return f'process {entry["process"]} on {entry["host"]} (since {entry["since"]})'
    except (OSError, ValueError, TypeError, KeyError):
        return 'another process'


def _let_go() -> None:
    """A forked worker of a data loader must not hold the lock when its run was killed."""
    for lock in list(_HELD.values()):
        lock.release()


os.register_at_fork(after_in_child=_let_go)
