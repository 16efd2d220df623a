"""The bytes of one tensor as a digest, and its type and shape as text."""

from __future__ import annotations

import ctypes
import hashlib

import torch
from torch import Tensor

from cdra_mm.errors import CheckpointError

from .sharded import is_sharded

__all__ = ['BYTES', 'add_bytes', 'digest_of', 'form_of']

BYTES = 16  # of each digest in a table


def form_of(tensor: Tensor) -> str:
    """Type and shape, such as ``float32 768x768``."""
    shape = 'x'.join(map(str, tensor.shape)) or 'scalar'
    return f'{str(tensor.dtype).removeprefix("torch.")} {shape}'


def digest_of(tensor: Tensor) -> str:
    """The first `BYTES` of the SHA-256 of a tensor's bytes, hexadecimal."""
    digest = hashlib.sha256()
    add_bytes(digest, tensor)
    return digest.digest()[:BYTES].hex()


def add_bytes(digest: hashlib._Hash, tensor: Tensor) -> None:
    """Adds the bytes of a tensor, in the order of its indices, to a hash.

    Raises:
        CheckpointError: If it is a part of one.
    """
    if is_sharded(tensor):
        raise CheckpointError(
            'a digest is one of a whole weight, this model is spread over processes (FSDP): shard '
            'it with cdra_mm.core.shard_base, which takes the digests first, or pass digests='
        )
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    if data.numel():
        digest.update((ctypes.c_char * data.numel()).from_address(data.data_ptr()))
