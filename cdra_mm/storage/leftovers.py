"""What a killed process has left of a file or folder that it was writing, and what becomes of it.

A file or folder is written beside its place, as ``.NAME.PROCESS.tmp``; a folder that is replaced on
a system that cannot swap two folders in one step lies as ``.NAME.PROCESS.old`` for the moment in
between. Both names say which process made them, so that the next one knows what is nobody's.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

__all__ = ['clear_leftovers', 'name_beside']

_LEFTOVER = re.compile(r'^\.(?P<name>.+)\.(?P<process>\d+)\.(?P<end>tmp|old)$')


def name_beside(path: Path, end: str) -> Path:
    """The name under which this process writes (``tmp``) or keeps (``old``) what belongs there."""
    return path.with_name(f'.{path.name}.{os.getpid()}.{end}')


def clear_leftovers(folder: str | Path, say: Callable[[str], object], name: str = '') -> None:
    """Removes what dead processes have left half-written in a folder, and restores what they moved.

    What a living process of this machine is writing stays, and so does what cannot be removed:
    a leftover never stops a run.
    """
    try:
        found = sorted(Path(folder).iterdir())
    except OSError:
        return
    for path in found:
        match = _LEFTOVER.match(path.name)
        if not match or (name and match['name'] != name) or _is_alive(int(match['process'])):
            continue
        place = path.with_name(match['name'])
        try:
            if match['end'] == 'old' and not os.path.lexists(place):
                os.replace(path, place)
                say(f'restored {place}: an earlier process was replacing it')
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            say(f'removed {path}: an earlier process was writing it')
        except OSError as error:
            say(f'{path}, which an earlier process has left, stays: {error}')


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # the number was given out again: this process has not written yet
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
