"""Text and bits as one small tensor: how checkpoints and adapter files keep what describes them.

    4 bytes   a mark that says what it is
    8 bytes   lengths of the text and of the bits, little endian
    the rest  zlib of the text, then the bits as they are

The text is JSON. What is claimed is compared with what is there before anything is made of it: bits
cost a file what they claim, and the text may be at most `MOST_TIMES` as long as its packed form.
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
MOST_TIMES = 200  # as long as its packed form a text may be, from 1 MiB on


def pack_text(mark: bytes, value: Any, data: bytes) -> Tensor:
    """A JSON value and bits as uint8 ``[n]``, the same bytes for the same values."""
    text = json.dumps(value, separators=(',', ':')).encode()
    packed = zlib.compress(text, 9)
    if not _may_claim(len(text), len(packed)):
        packed = zlib.compress(text, 0)  # so regular that nobody would read it back
    whole = HEAD.pack(mark, len(text), len(data)) + packed + data
    return torch.frombuffer(bytearray(whole), dtype=torch.uint8)


def unpack_text(mark: bytes, tensor: Tensor) -> tuple[Any, bytes]:
    """Reads `pack_text`.

    Raises:
        ValueError: If it is damaged, or of another mark.
    """
    plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
    if not plain or tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ValueError('it is no uint8 [n]')
    packed = tensor.cpu().numpy().tobytes()
    if len(packed) < HEAD.size:
        raise ValueError(f'it has {len(packed)} bytes')
    found, length, rest = HEAD.unpack(packed[: HEAD.size])
    if found != mark:
        raise ValueError(f'it begins with {found!r}, expected {mark!r}')
    end = len(packed) - rest
    if end < HEAD.size or not _may_claim(length, end - HEAD.size):
        raise ValueError(f'it claims {length + rest:,} bytes in {len(packed):,}')
    machine = zlib.decompressobj()
    try:
        text = machine.decompress(packed[HEAD.size : end], length + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(text) != length or not machine.eof or machine.unused_data:
        raise ValueError(f'it claims {length:,} bytes of text, others are there')
    return strict_json(text), packed[end:]


def _may_claim(length: int, packed: int) -> bool:
    return length <= max(1 << 20, MOST_TIMES * packed)
