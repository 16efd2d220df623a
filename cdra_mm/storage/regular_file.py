"""Files that are opened to be read, and never anything else that has a name in a folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from cdra_mm.errors import CheckpointError

__all__ = ['open_regular']

KINDS = {
    stat.S_IFDIR: 'is a folder',
    stat.S_IFIFO: 'is a pipe',
    stat.S_IFCHR: 'is a device',
    stat.S_IFBLK: 'is a device',
    stat.S_IFSOCK: 'is a socket',
}


def open_regular(path: str | Path, what: str = 'file', where: str = '') -> tuple[BinaryIO, int]:
    """Opens a file for reading, and gives its size.

    A pipe would be waited for without end, and a device may act when it is opened: neither is.

    Args:
        path: The file.
        what: What it should be, for the message.
        where: What names it (a setting, an option), likewise.

    Returns:
        The open file, and its size in bytes.

    Raises:
        CheckpointError: If it does not exist, is no regular file, or cannot be read.
    """
    path = Path(path)
    named = f'{what} {path}' + (f' ({where})' if where else '')
    try:
        _require_regular(path.stat(), named)
        file = open(path, 'rb', opener=_without_waiting)  # noqa: SIM115
        try:
            info = os.fstat(file.fileno())
            _require_regular(info, named)
        except CheckpointError:
            file.close()
            raise
    except FileNotFoundError:
        raise CheckpointError(f'{named} does not exist: put it there or name another') from None
    except OSError as error:
        raise CheckpointError(
            f'{named} cannot be read ({error.strerror or error}): mend that or name another'
        ) from None
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f'{str(path)!r} is no name of a {what}: {error}') from None
    return file, info.st_size


def _require_regular(info: os.stat_result, named: str) -> None:
    if not stat.S_ISREG(info.st_mode):
        kind = KINDS.get(stat.S_IFMT(info.st_mode), 'is no regular file')
        raise CheckpointError(f'{named} {kind}: put a file there or name another')


def _without_waiting(path: str, flags: int) -> int:
    # Between the look and the opening a pipe may have taken its place.
    return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))
