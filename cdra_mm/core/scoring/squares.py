"""The square of Eq. 3, and the sum of squared gradients of a weight by what each device does best.

    total[o, i] += sum_b ( sum_t grad[b, t, o] * x[b, t, i] )^2

On an NVIDIA GPU with Triton one kernel does it without writing a gradient
(`square_kernel`); elsewhere the gradients of a few samples are held at a time.

Legend: B samples, T tokens, I input width, O output width.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from ..triton_support import KERNEL_DTYPES, failure_of, missing_for_kernels

__all__ = ['add_squared', 'add_squares']

SCRATCH_BYTES = 64 * 2**20


def add_squared(total: Tensor, gradients: Tensor) -> None:
    """Adds the squares of per-sample gradients (Eq. 3): ``total += sum_b gradients[b]^2``.

    Args:
        total: fp32, of any shape; may be a view.
        gradients: fp32 ``[B, *total.shape]``.
    """
    if len(gradients) == 1:
        total.addcmul_(gradients[0], gradients[0])
    else:
        total.add_(gradients.square().sum(0))


def add_squares(total: Tensor, x: Tensor, grad: Tensor) -> None:
    """Adds the squared per-sample gradients of ``y = x W^T``, with fp32 sums (Eq. 3).

    Scratch beside the inputs: one ``[O, I]`` on a CPU (two for bf16 operands), at most one tile per
    multiprocessor with the kernel, about `SCRATCH_BYTES` elsewhere (one sample's
    gradient where that is larger).

    Args:
        total: fp32 ``[O, I]``; may be a view of some rows of a larger matrix.
        x: Input of the layer ``[B, T, I]``.
        grad: Gradient of its output ``[B, T, O]``.

    Example:
        >>> total = torch.zeros(1, 1)
        >>> add_squares(total, torch.tensor([[[1.0], [1.0]], [[2.0], [1.0]]]), torch.ones(2, 2, 1))
        >>> total
        tensor([[13.]])
    """
    if not (x.numel() and grad.numel()):
        return
    if x.device.type in ('cpu', 'meta'):  # a dry run: about what the kernel holds
        _add_by_sample(total, x, grad)
    elif x.dtype == grad.dtype and _kernel_runs(x.device, x.dtype):
        from .square_kernel import add_squared_gradients

        add_squared_gradients(total, x, grad)
    else:
        _add_by_chunk(total, x, grad)


def _add_by_sample(total: Tensor, x: Tensor, grad: Tensor) -> None:
    wide = torch.empty_like(total, memory_format=torch.contiguous_format)
    # bf16 operands are multiplied as they are, twice as fast: each gradient is summed over its
    # tokens in fp32 and rounded once, as the gradient of a batch of one would be. (fp16 would
    # overflow.) Squares are added up in fp32.
    dtype = torch.bfloat16 if x.dtype == grad.dtype == torch.bfloat16 else wide.dtype
    product = wide.to(dtype)
    for x_b, grad_b in zip(x, grad, strict=True):
        torch.mm(grad_b.to(dtype).t(), x_b.to(dtype), out=product)
        if product is not wide:
            wide.copy_(product)
        add_squared(total, wide[None])


def _add_by_chunk(total: Tensor, x: Tensor, grad: Tensor) -> None:
    # The gradient and its square, and its operands where they have to be made fp32.
    per_sample = 4 * (2 * total.numel() + x[0].numel() + grad[0].numel())
    count = max(1, SCRATCH_BYTES // per_sample)
    for x_c, grad_c in zip(torch.split(x, count), torch.split(grad, count), strict=True):
        add_squared(total, _products(x_c, grad_c))


def _products(x: Tensor, grad: Tensor) -> Tensor:
    """``grad[b]^T x[b]`` in fp32. ``[B, O, I]``."""
    columns = grad.transpose(1, 2)
    if x.dtype == grad.dtype and _multiplies_wide(x.device, x.dtype):
        return torch.bmm(columns, x, out_dtype=torch.float32)
    return torch.bmm(columns.float(), x.float())


@cache
def _multiplies_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``bmm`` has an fp32 result for 16-bit operands there (torch 2.8 on CUDA)."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    one = torch.ones(1, 8, 8, dtype=dtype, device=device)
    try:
        torch.bmm(one, one, out_dtype=torch.float32)
    except (TypeError, RuntimeError):  # no such argument; not on this device
        return False
    return True


@cache
def _kernel_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Triton kernel works there, seen by running it once on ones."""
    if device.type != 'cuda':
        return False
    missing = missing_for_kernels(device)
    if missing:
        _say_slower(f'the Triton kernel needs {missing}')
        return False
    if dtype not in KERNEL_DTYPES:
        _say_slower(f'the Triton kernel knows fp32, bf16 and fp16, not {dtype}')
        return False

    def check() -> None:
        from .square_kernel import add_squared_gradients

        ones = torch.ones(2, 32, 128, dtype=dtype, device=device)
        total = torch.zeros(128, 128, device=device)
        add_squared_gradients(total, ones, ones)
        found = sorted({total.min().item(), total.max().item()})
        if found != [2.0 * 32**2]:
            raise RuntimeError(f'expected {2 * 32**2}, computed {found}')

    failure = failure_of(check)
    if failure:
        _say_slower(f'the Triton kernel for {dtype} does not run on {device} {failure}')
    return not failure


@cache
def _say_slower(why: str) -> None:
    """Once a process for each reason."""
    warnings.warn(f'scoring is slower than it could be: {why}', stacklevel=3)
