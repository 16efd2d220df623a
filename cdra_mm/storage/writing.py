"""Files and folders that are there whole or not at all: written beside their place, then renamed.

A plain folder cannot be renamed over another one. Where the system can swap two names in one step
(Linux: ``renameat2``, on all common local file systems) a folder is replaced so. Elsewhere it takes
two renames; a process that is killed between them leaves the old folder under a name that
`cdra_mm.storage.leftovers` knows, and the next writer of the folder, or the next run in that place,
puts it back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from cdra_mm.errors import CheckpointError

from .leftovers import clear_leftovers, name_beside

__all__ = ['write_atomically', 'write_folder', 'write_text']

_AT_CWD, _EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>
# What a system or a file system says that cannot swap.
_NO_SWAP = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file under a temporary name, then renames it."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding='utf-8'))


def write_atomically(path: str | Path, write: Callable[[str], object]) -> None:
    """Calls ``write(temporary path)``, then renames: never a half-written file.

    A symbolic link is replaced, not followed.

    Raises:
        CheckpointError: If the folder or disk does not take the file, or something that is no file
            has its name.
    """
    path = Path(path)
    temporary = name_beside(path, 'tmp')
    try:
        if not _is_file_or_free(path):
            raise OSError(errno.EEXIST, 'it is a folder, a device or a pipe')
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent, lambda _: None, path.name)
        write(str(temporary))
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError
        raise CheckpointError(f'{path} cannot be written ({error}): nothing was changed') from None
    finally:
        with suppress(OSError):  # its folder may be no folder
            temporary.unlink(missing_ok=True)


def write_folder(path: str | Path, write: Callable[[Path], object]) -> None:
    """Calls ``write(temporary folder)``, then renames it; a folder that is there is replaced.

    Whenever the process ends, the old folder or the new one is whole (see above).

    Raises:
        CheckpointError: If the disk does not take it.
    """
    path = Path(path)
    temporary, old = name_beside(path, 'tmp'), name_beside(path, 'old')
    clear_leftovers(path.parent, lambda _: None, path.name)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        _flush(temporary)
        if not path.exists():
            os.replace(temporary, path)
        elif not _swap(temporary, path):
            os.replace(path, old)
            os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f'{path} cannot be written ({error}): nothing was changed') from None
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Gives two paths each other's content in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, TypeError, AttributeError):
        return False
    if rename(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_SWAP:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _flush(folder: Path) -> None:
    """Brings the files of a folder to the disk: a rename may get there before them."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open('rb') as file:
                os.fsync(file.fileno())


def _is_file_or_free(path: Path) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
