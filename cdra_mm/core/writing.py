"""Files that are there whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from .errors import CheckpointError

__all__ = ['write_atomically', 'write_folder', 'write_text']


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file under a temporary name, then renames it."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding='utf-8'))


def write_atomically(path: str | Path, write: Callable[[str], object]) -> None:
    """Calls ``write(temporary path)``, then renames: never a half-written file.

    Raises:
        CheckpointError: If the folder or disk does not take the file.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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

    Raises:
        CheckpointError: If the disk does not take it.
    """
    path = Path(path)
    temporary, old = (path.with_name(f'.{path.name}.{os.getpid()}.{end}') for end in ('tmp', 'old'))
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise CheckpointError(f'{path} cannot be written ({error}): nothing was changed') from None
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
