"""The archives that ``torch.save`` writes: a zip file of a pickle and the bytes of each storage."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from .allowed_types import AllowedType, ForeignTypeError, ReadingError
from .pickle_machine import run_pickle
from .tensors import Storages, read_bytes

__all__ = ['archive_places', 'read_archive']

LOCAL_HEADER = struct.Struct('<4s22xHH')  # signature ... length of the name, of the extra field
FOREIGN = {
    'constants.pkl': 'a TorchScript program (torch.jit.save)',
    'archive_format': 'a program of torch.export',
    '.data/extern_modules': 'a torch.package',
}


def read_archive(
    file: BinaryIO, size: int, types: Mapping[str, AllowedType]
) -> tuple[Any, Storages, int]:
    """The tree of an archive.

    Args:
        file: The open file.
        size: Its size in bytes.
        types: What its pickle may name.

    Returns:
        The tree, its storages with their bytes, and the length of the pickle.

    Raises:
        ReadingError: If it is damaged.
        ForeignTypeError: If it is an archive of another kind.
    """
    places = archive_places(file, size)
    pickles = [name for name in places if PurePosixPath(name).name == 'data.pkl']
    roots = {name.partition('/')[0] for name in places}
    if len(roots) != 1 or pickles != [f'{next(iter(roots), "")}/data.pkl']:
        raise ForeignTypeError('an archive that torch.save did not write')
    root = next(iter(roots))
    order = _content(file, places, f'{root}/byteorder') or sys.byteorder.encode()
    if order.decode('latin-1') != sys.byteorder:
        raise ReadingError(f'written on a machine of another byte order ({order[:10]!r})')
    text = _content(file, places, pickles[0]) or b''
    storages = Storages()
    tree = run_pickle(io.BytesIO(text), types, storages.named)
    for key, storage in storages.found.items():
        begin, length = places.get(f'{root}/data/{key}', (0, -1))
        if length != storage.num_bytes:
            raise ReadingError(
                f'a storage of {storage.num_bytes:,} bytes of which {max(length, 0):,} are there'
            )
        file.seek(begin)
        storage.content = read_bytes(file, length)
    return tree, storages, len(text)


def archive_places(file: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """Where the members of an archive lie: first byte and length, by name.

    Raises:
        ReadingError: If it is no archive, or its members are packed, overlap or lie outside it.
        ForeignTypeError: If it is an archive of another kind.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    except (
        zipfile.BadZipFile, struct.error, ValueError, OverflowError, NotImplementedError,
        RuntimeError, EOFError, OSError, IndexError,
    ) as error:  # fmt: skip
        raise ReadingError(f'no whole archive: {error}') from None
    inside = {member.filename.partition('/')[2] for member in members}
    for name, what in FOREIGN.items():
        if name in inside:
            raise ForeignTypeError(f'{what} and no checkpoint')
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for member in members:
        name = member.filename
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ReadingError(f'its {name[:60]!r} is packed, and torch packs nothing')
        begin = member.header_offset
        file.seek(max(begin, 0))
        header = file.read(LOCAL_HEADER.size)
        if begin < end or len(header) < LOCAL_HEADER.size or header[:4] != b'PK\x03\x04':
            raise ReadingError(f'its {name[:60]!r} is not where its directory says')
        _, name_length, extra_length = LOCAL_HEADER.unpack(header)
        begin += LOCAL_HEADER.size + name_length + extra_length
        end = begin + member.file_size
        if member.file_size != member.compress_size or end > size or name in places:
            raise ReadingError(f'its {name[:60]!r} does not fit into the file')
        if name:
            places[name] = begin, member.file_size
    if not places:
        raise ReadingError('an empty archive')
    return places


def _content(file: BinaryIO, places: Mapping[str, tuple[int, int]], name: str) -> bytes | None:
    if name not in places:
        return None
    begin, length = places[name]
    file.seek(begin)
    return file.read(length)
