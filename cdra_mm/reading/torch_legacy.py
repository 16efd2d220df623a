"""The files of ``torch.save`` before release 1.6: pickles one after another, then the bytes."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from .allowed_types import AllowedType, ForeignTypeError, ReadingError
from .pickle_machine import run_pickle
from .tensors import Storages, read_bytes

__all__ = ['read_legacy']

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


class _Bounded(io.RawIOBase):
    """A file whose reads allocate no more than is left of it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int = -1) -> bytes:
        left = max(self._size - self._file.tell(), 0)
        return self._file.read(min(count, left) if count >= 0 else left)

    def readline(self, limit: int | None = -1) -> bytes:
        return self._file.readline()

    def tell(self) -> int:
        return self._file.tell()


def read_legacy(
    file: BinaryIO, size: int, types: Mapping[str, AllowedType]
) -> tuple[Any, Storages, int]:
    """The tree of such a file, its storages, and the length of the pickles.

    Raises:
        ReadingError: If it is damaged, or written on a machine of another byte order.
        ForeignTypeError: If it is another kind of pickle.
    """
    stream: Any = _Bounded(file, size)
    file.seek(0)
    magic = run_pickle(stream, types)
    if type(magic) is not int or magic != MAGIC:
        raise ForeignTypeError('a Python pickle that torch.save did not write')
    if run_pickle(stream, {}) != VERSION:
        raise ReadingError('of an unknown version')
    system = run_pickle(stream, {})
    little = system.get('little_endian') if isinstance(system, dict) else None
    if little is not (sys.byteorder == 'little'):
        raise ReadingError('written on a machine of another byte order')
    storages = Storages()
    tree = run_pickle(stream, types, storages.named)
    keys = run_pickle(stream, {})
    length = file.tell()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages.found):
        raise ReadingError('its list of storages is not that of its tensors')
    for key in keys:
        storage = storages.found[str(key)]
        count = int.from_bytes(file.read(8), 'little')
        if count != storage.size or file.tell() + storage.num_bytes > size:
            raise ReadingError(
                f'a storage of {storage.num_bytes:,} bytes of which '
                f'{max(size - file.tell(), 0):,} are there'
            )
        storage.content = read_bytes(file, storage.num_bytes)
    return tree, storages, length
