"""Archives of numpy arrays (``.npz``): their claims, held against the bytes that are there."""

from __future__ import annotations

import ast
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cdra_mm.errors import CheckpointError
from cdra_mm.storage.regular_file import open_regular

from .allowed_types import ReadingError
from .numpy_types import plain_array, plain_dtype

__all__ = ['read_npz']

# zlib packs no more than about 1030 to 1; weights hardly at all, masks of few entries well.
MOST_GROWTH, FREE_BYTES = 200, 1 << 30
LONGEST_HEADER = 10_000
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_npz(
    path: str | Path, what: str = 'npz file'
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The arrays of a file by name, one after the other.

    Yields:
        Name and array; of plain numbers.

    Raises:
        CheckpointError: If it is missing, no regular file, damaged, holds objects, or claims more
            than the file can hold.
    """
    file, size = open_regular(path, what)
    try:
        with file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_sizes(members, size)
            for member in members:
                yield member.filename.removesuffix('.npy'), _array(archive, member)
    except CheckpointError:
        raise
    except (
        ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error,
        NotImplementedError, RuntimeError, OverflowError, MemoryError, IndexError,
    ) as error:  # fmt: skip
        raise CheckpointError(
            f'{path} is not a readable {what} of numbers ({error}): copy it again, or name another'
        ) from None


def _check_sizes(members: list[zipfile.ZipInfo], size: int) -> None:
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ReadingError('two arrays of one name')
    total = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if packed > size or any(member.compress_type not in PACKED for member in members):
        raise ReadingError('its directory does not fit the file')
    if total > max(FREE_BYTES, MOST_GROWTH * size):
        raise ReadingError(f'{size:,} bytes that would grow to {total:,}')


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    with archive.open(member) as stream:
        start = stream.read(8)
        if start[:6] != b'\x93NUMPY' or len(start) < 8:
            raise ReadingError(f'{member.filename[:60]!r} is no array')
        width = 2 if start[6] == 1 else 4
        length = int.from_bytes(stream.read(width), 'little')
        if length > LONGEST_HEADER:
            raise ReadingError(f'{member.filename[:60]!r} has a header of {length:,} bytes')
        dtype, shape, fortran = _header(stream.read(length))
        expected = math.prod(shape) * dtype.itemsize
        left = member.file_size - 8 - width - length
        if expected != left:
            raise ReadingError(
                f'{member.filename[:60]!r} claims {expected:,} bytes, {left:,} are there'
            )
        return plain_array(stream.read(expected), dtype, shape, fortran)


def _header(text: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    try:
        found = ast.literal_eval(text.decode('latin-1').strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        found = None
    if not isinstance(found, dict) or found.keys() != {'descr', 'fortran_order', 'shape'}:
        raise ReadingError('the header of an array is damaged')
    shape = found['shape']
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ReadingError('an array of a shape that is none')
    return plain_dtype(found['descr']), shape, found['fortran_order'] is True
