"""Text and bits as one small tensor: how checkpoints and adapter files keep what describes them.

    4 bytes   a mark that says what it is
    8 bytes   lengths of the text and of the bits, little endian
    the rest  zlib of both, one after the other

The text is JSON. What is claimed is compared with what is there before anything is made of it.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import torch
from torch import Tensor

from cdra_mm.storage.strict_json import strict_json

__all__ = ['pack_text', 'unpack_text']

HEAD = struct.Struct('<4sII')
MOST_TIMES = 200  # as large as its packed form it may be, from 1 MiB on


def pack_text(mark: bytes, value: Any, data: bytes) -> Tensor:
    """A JSON value and bits as uint8 ``[n]``, the same bytes for the same values."""
    text = json.dumps(value, separators=(',', ':')).encode()
    packed = HEAD.pack(mark, len(text), len(data)) + zlib.compress(text + data, 9)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def unpack_text(mark: bytes, tensor: Tensor) -> tuple[Any, bytes]:
    """Reads `pack_text`.

    Raises:
        ValueError: If it is damaged, or of another mark.
    """
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ValueError('it is no uint8 [n]')
    packed = tensor.cpu().numpy().tobytes()
    if len(packed) < HEAD.size:
        raise ValueError(f'it has {len(packed)} bytes')
    found, length, rest = HEAD.unpack(packed[: HEAD.size])
    if found != mark:
        raise ValueError(f'it begins with {found!r}, expected {mark!r}')
    if length + rest > max(1 << 20, MOST_TIMES * len(packed)):
        raise ValueError(f'it claims {length + rest:,} bytes in {len(packed):,}')
    machine = zlib.decompressobj()
    try:
        whole = machine.decompress(packed[HEAD.size :], length + rest + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(whole) != length + rest or not machine.eof or machine.unused_data:
        raise ValueError(f'it claims {length + rest:,} bytes, others are there')
    return strict_json(whole[:length]), whole[length:]
