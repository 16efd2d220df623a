"""Whether the kernels of `block_ops` are taken: where they run, and for what."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ..triton_support import KERNEL_DTYPES, failure_of, missing_for_kernels

__all__ = ['kernels_run', 'take_kernels']


def take_kernels(
    others: Sequence[Tensor],
    matrices: Sequence[Tensor],
    factors: Sequence[Tensor],
    dtype: torch.dtype,
) -> bool:
    """Whether the kernels run there and know the types: one of the matrices, fp32 factors.

    Args:
        others: All that they read beside matrices and factors; contiguous.
        matrices: What has the type that a product is computed in, or that the weights have.
        factors: The factors.
        dtype: Type of what they write.
    """
    device = matrices[0].device
    if not kernels_run(device):
        return False
    # They read addresses: one of another device's memory would end the process's use of the GPU.
    # What torch's operations say about it is said where they are taken instead.
    for tensor in (*others, *matrices):
        if tensor.device != device:
            return False
    for tensor in others:
        if not tensor.is_contiguous():
            return False
    known = dtype in KERNEL_DTYPES
    for factor in factors:
        if factor.device != device:
            return False
        known = known and factor.dtype is torch.float32
        if not factor.numel():
            return False
        if not factor.is_contiguous():
            _say_slower(device, 'need contiguous factors, not parts of larger ones')
            return False
    types = {matrix.dtype for matrix in matrices}
    if not known or not types <= KERNEL_DTYPES:
        given = sorted({str(t.dtype) for t in (*matrices, *factors)} | {str(dtype)})
        _say_slower(device, f'know fp32, bf16 and fp16 over fp32 factors, not {", ".join(given)}')
        return False
    return len(types) == 1


@cache
def kernels_run(device: torch.device) -> bool:
    """Whether the Triton kernels work there, seen by running them once."""
    if device.type != 'cuda':
        return False
    missing = missing_for_kernels(device)
    why = f'need {missing}' if missing else failure_of(lambda: _check_kernels(device))
    if why:
        _say_slower(device, why if missing else f'do not run {why}')
    return not why


def _check_kernels(device: torch.device) -> None:
    from .kernel_check import check_kernels

    check_kernels(device)


@cache
def _say_slower(device: torch.device, why: str) -> None:
    """Once for each reason."""
    warnings.warn(
        f'training on {device} is slower than it could be: the kernels for blocks {why}',
        stacklevel=3,
    )
