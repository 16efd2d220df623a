"""Fingerprints of weights: which base a plan or an adapter belongs to."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .targets import find_targets

__all__ = ['fingerprint', 'fingerprint_of']


def fingerprint(model: nn.Module, names: Iterable[str] | None = None) -> str:
    """SHA-256 of base weights, equal for equal names, types, shapes and values.

    Args:
        model: The model; adapters do not count.
        names: State-dict keys to cover. Default: the parameters that compete
            (`find_targets`), so that a head or a resized position embedding
            makes no difference.
    """
    state = model.state_dict()
    if names is None:
        names = {target.path for target in find_targets(model).values()}
    return fingerprint_of({name: state[name] for name in names})


def fingerprint_of(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of named tensors, in the order of their names, as hexadecimal text."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
        if data.numel():
            digest.update((ctypes.c_char * data.numel()).from_address(data.data_ptr()))
    return digest.hexdigest()
