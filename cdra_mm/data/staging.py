"""Making a data set beside its place, and moving it there only when it is whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdra_mm.errors import DataError

__all__ = ['staged']


@contextmanager
def staged(
    root: str | Path, entries: tuple[str, ...], kept: tuple[str, ...] = ()
) -> Iterator[Path]:
    """A temporary folder whose ``entries`` are moved into ``root`` at the end.

    Args:
        root: Folder of the data set; made when missing, and removed again on failure.
        entries: Paths that the body makes in the temporary folder, moved in this order. None of
            them may exist in ``root``, but as a folder that holds nothing else than ``kept``.
        kept: Names of files in an entry that stay when they are there already.

    Yields:
        The temporary folder, on the same file system as ``root``.

    Raises:
        DataError: If an entry exists already or ``root`` cannot be written.
    """
    root = Path(root)
    for entry in entries:
        for path in _in_the_way(root / entry, kept):
            raise DataError(f'{path} exists and would be overwritten: move it away first')
    made = [p for p in (root, *root.parents) if not p.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix='.preparing-', dir=root))
    except OSError as error:
        raise DataError(f'cannot write to {root}: {error.strerror or error}') from error
    try:
        yield temporary
        for entry in entries:
            _move(temporary / entry, root / entry)
    except OSError as error:
        raise DataError(f'cannot write to {root}: {error}') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:  # innermost first; those that hold something now stay
            if not any(folder.iterdir()):
                folder.rmdir()


def _in_the_way(entry: Path, kept: tuple[str, ...]) -> list[Path]:
    if not entry.is_dir() or not kept:
        return [entry] if entry.exists() else []
    return [path for path in sorted(entry.iterdir()) if path.name not in kept]


def _move(made: Path, entry: Path) -> None:
    if not entry.exists():
        entry.parent.mkdir(parents=True, exist_ok=True)
        made.rename(entry)
        return
    for path in sorted(made.iterdir()):
        if not (entry / path.name).exists():
            path.rename(entry / path.name)
