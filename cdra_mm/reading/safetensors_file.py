"""Safetensors files, checked before anything is allocated for them.

A file is the length of the header (8 bytes, little endian), the header (JSON: type, shape and
place of each tensor, and text under ``__metadata__``) and the tensors without gaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from cdra_mm.errors import CheckpointError
from cdra_mm.storage.regular_file import open_regular
from cdra_mm.storage.strict_json import strict_json

__all__ = ['SafetensorsFile', 'open_safetensors', 'read_safetensors']

# Bits of a value.
BITS = {'F4': 4, 'F6_E2M3': 6, 'F6_E3M2': 6}
BITS |= dict.fromkeys(('BOOL', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3', 'F8_E8M0'), 8)
BITS |= dict.fromkeys(('F8_E4M3FNUZ', 'F8_E5M2FNUZ'), 8)
BITS |= dict.fromkeys(('U16', 'I16', 'F16', 'BF16'), 16)
BITS |= dict.fromkeys(('U32', 'I32', 'F32'), 32)
BITS |= dict.fromkeys(('U64', 'I64', 'F64', 'C64'), 64)
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


@dataclass(frozen=True)
class SafetensorsFile:
    """An open file; its tensors are read when they are asked for.

    Attributes:
        path: Where it lies.
        metadata: Its text.
        shapes: The shape of every tensor, in the order of the file's header.
    """

    path: str
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    _file: Any

    def tensor(self, name: str) -> Tensor:
        """A tensor, on the CPU.

        Raises:
            CheckpointError: If the file lacks it, or torch has no such type.
        """
        if name not in self.shapes:
            raise CheckpointError(f'{self.path} is damaged or foreign: it holds no {name!r}')
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, AttributeError, TypeError) as error:
            raise CheckpointError(f'{self.path}: {name} cannot be read ({error})') from None
        return tensor

    def tensors(self) -> dict[str, Tensor]:
        """All of them."""
        return {name: self.tensor(name) for name in self.shapes}


def open_safetensors(path: str | Path, what: str = 'safetensors file') -> SafetensorsFile:
    """Opens a file after a look at its header.

    Args:
        path: The file.
        what: What it should be, for the message.

    Raises:
        CheckpointError: If it is missing, no regular file, truncated or foreign, or says anything
            of itself that does not fit the bytes that are there.
    """
    try:
        metadata, shapes = _read_header(path, what)
        return SafetensorsFile(str(path), metadata, shapes, safe_open(str(path), framework='pt'))
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f'{path} is truncated or no safetensors file ({error}): copy it or write it again, or '
            'name another'
        ) from None


def read_safetensors(path: str | Path, what: str = 'safetensors file') -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        CheckpointError: See `open_safetensors`.
    """
    return open_safetensors(path, what).tensors()


def _read_header(path: str | Path, what: str) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    file, size = open_regular(path, what)
    with file:
        length = int.from_bytes(file.read(8), 'little')
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise ValueError(f'a header of {length:,} bytes in a file of {size:,}')
        header = strict_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError('its header is no JSON object')
    metadata = header.pop('__metadata__', {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError('its metadata is no text by name')
    places = {name: _place(name, entry) for name, entry in header.items()}
    end = 0
    for name, (begin, until, _) in sorted(places.items(), key=lambda item: item[1][:2]):
        if begin != end:
            raise ValueError(f'{name!r} does not begin where the tensor before it ends')
        end = until
    if end != size - 8 - length:
        raise ValueError(f'{end:,} bytes of tensors, {size - 8 - length:,} are there')
    return metadata, {name: shape for name, (_, _, shape) in places.items()}


def _place(name: str, entry: Any) -> tuple[int, int, tuple[int, ...]]:
    """Begin, end and shape of a tensor, as the header gives them."""
    if not isinstance(entry, dict) or entry.keys() != {'dtype', 'shape', 'data_offsets'}:
        raise ValueError(f'the entry of {name!r} is not dtype, shape and data_offsets')
    kind, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
    if not isinstance(kind, str) or kind not in BITS:
        raise ValueError(f'{name!r} is of the unknown type {str(kind)[:20]!r}')
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f'shape or place of {name!r} are no whole numbers')
    begin, end = offsets
    bits = math.prod(shape) * BITS[kind]
    if bits != (end - begin) * 8:
        raise ValueError(f'{name!r} claims {-(-bits // 8):,} bytes, {end - begin:,} are there')
    return begin, end, tuple(shape)


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    )
