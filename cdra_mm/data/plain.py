"""Data sets whose archive has the layout that is read already: ADE20K and PASCAL VOC."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .unpack import unpack

__all__ = ['install']


def install(files: Mapping[str, Path], out: Path, *, inside: str, entry: str) -> None:
    """Unpack one folder of the only archive.

    Raises:
        DataError: If the archive cannot be unpacked.
    """
    (archive,) = files.values()
    (out / entry).parent.mkdir(parents=True, exist_ok=True)
    unpack(archive, out / entry, inside=inside)
