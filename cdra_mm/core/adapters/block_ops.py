"""Two operations on the blocks of many layers, each one launch on a GPU.

``cdra_mm::adapted_copies``    W' of all layers, in the type that it is multiplied in
``cdra_mm::factor_gradients``  the gradients of a layer's factors from those of its blocks

Registered with torch, so that `torch.compile` takes each as one operation. On an NVIDIA GPU with
Triton they run the kernels of `block_kernels`; what is here runs everywhere else, and says what
the kernels compute.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..flat_layout import begins_of
from ..triton_support import KERNEL_DTYPES, failure_of, missing_for_kernels

__all__ = ['adapted_copies', 'factor_gradients', 'kernels_run']


_LIBRARY = torch.library.Library('cdra_mm', 'FRAGMENT')  # type: ignore[no-untyped-call]
# An operation is a whole to torch.compile: it must not trace into it while a compiled model runs.
# What `torch.library.custom_op` does; the public `torch.compiler.disable` loads the compiler.
_not_traced: Any = torch._disable_dynamo
_define: Any = _LIBRARY.define  # torch has no types for it
_define(
    'adapted_copies(Tensor[] weights, Tensor[] plain, Tensor[] factors, Tensor[] indices, '
    'int[] counts, float[] scales, ScalarType dtype) -> Tensor'
)
_define('factor_gradients(Tensor[] blocks, Tensor[] factors, float[] scales) -> Tensor')


def adapted_copies(
    weights: Sequence[Tensor],
    plain: Sequence[Tensor],
    factors: Sequence[Tensor],
    indices: Sequence[Tensor],
    counts: Sequence[int],
    scales: Sequence[float],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Copies of weights with the updates of their blocks (Eq. 6), and of tensors as they are.

    Updates are added in the factors' type and each entry is rounded once.

    Args:
        weights: ``[O, I]`` each.
        plain: Tensors that are copied without a change (biases).
        factors: ``down [r, |C|], up [|R|, r]`` of every block, weight by weight.
        indices: Rows and columns of every block in its weight, int64 ``[|R|], [|C|]``. No entry
            of a weight is in two blocks.
        counts: Blocks of each weight.
        scales: Factor of each block's update.
        dtype: Type of the copies.

    Returns:
        A copy of each of `weights`, then of each of `plain`; views of one tensor.
    """
    arguments = weights, plain, factors, indices, counts, scales, dtype
    if _is_eager(weights[0]):
        return _make_copies(*arguments)[1]
    return _parts(torch.ops.cdra_mm.adapted_copies(*arguments), [*weights, *plain])


def _is_eager(tensor: Tensor) -> bool:
    """Whether nothing looks at operations as such: then there is no need to go through torch's."""
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()
    return not watched and type(tensor) in (Tensor, nn.Parameter)


def _parts(flat: Tensor, sources: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that lie in a flat one, in the shapes of what they were made of."""
    shapes = [source.shape for source in sources]  # of matrices and vectors
    begins = begins_of(shape.numel() for shape in shapes)
    # A third of the time of splitting and viewing, of which a step does some hundreds.
    return [
        flat.as_strided(shape, (*shape[1:], 1), begin)
        for shape, begin in zip(shapes, begins[:-1], strict=True)
    ]


def _length(sources: Sequence[Tensor]) -> int:
    """Entries of the flat tensor in which they lie."""
    return begins_of(source.numel() for source in sources)[-1]


def factor_gradients(
    blocks: Sequence[Tensor], factors: Sequence[Tensor], scales: Sequence[float]
) -> list[Tensor]:
    """``scale up^T G`` and ``scale G down^T`` of each block, in the factors' type.

    Args:
        blocks: Gradient of each block, G ``[|R|, |C|]``; may be views.
        factors: ``down [r, |C|], up [|R|, r]`` of each block in turn.
        scales: Factor of each block's update.

    Returns:
        The gradients, in the order of `factors`, in the type of the first. They lie in one tensor,
        but a write to one is none to another (`Tensor._version`).
    """
    if _is_eager(blocks[0]):
        return [gradient.data for gradient in _take_gradients(blocks, factors, scales)[1]]
    return _parts(torch.ops.cdra_mm.factor_gradients(blocks, factors, scales), factors)


@torch.library.impl(_LIBRARY, 'adapted_copies', 'CompositeExplicitAutograd')
@_not_traced  # type: ignore[untyped-decorator]
def _(*arguments: Any) -> Tensor:
    return _make_copies(*arguments)[0]


def _make_copies(
    weights: Sequence[Tensor],
    plain: Sequence[Tensor],
    factors: Sequence[Tensor],
    indices: Sequence[Tensor],
    counts: Sequence[int],
    scales: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, list[Tensor]]:
    """The flat tensor, and its parts."""
    with _plainly(weights[0].device):
        sources = [*weights, *plain]
        flat = sources[0].new_empty(_length(sources), dtype=dtype)
        copies = _parts(flat, sources)
        torch._foreach_copy_(copies, sources)
        contiguous = all(tensor.is_contiguous() for tensor in (*weights, *indices))
        if contiguous and _take_kernels(weights, factors, dtype, indices):
            from .block_kernels import write_blocks

            write_blocks(flat, weights, factors, indices, counts, scales)
            return flat, copies
        first = 0
        for copy, weight, count in zip(copies, weights, counts, strict=False):
            for i in range(first, first + count):
                rows, cols = indices[2 * i][:, None], indices[2 * i + 1][None, :]
                down, up = factors[2 * i], factors[2 * i + 1]
                copy[rows, cols] = torch.add(
                    weight[rows, cols], up @ down.to(up.dtype), alpha=scales[i]
                ).to(dtype)
            first += count
        return flat, copies


@torch.library.impl(_LIBRARY, 'factor_gradients', 'CompositeExplicitAutograd')
@_not_traced  # type: ignore[untyped-decorator]
def _(*arguments: Any) -> Tensor:
    return _take_gradients(*arguments)[0]


def _take_gradients(
    blocks: Sequence[Tensor], factors: Sequence[Tensor], scales: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    """The flat tensor, and its parts."""
    with _plainly(blocks[0].device):
        if _take_kernels(blocks, factors, blocks[0].dtype):
            from .block_kernels import take_factor_gradients

            flat = take_factor_gradients(blocks, factors, scales)
            return flat, _parts(flat, factors)
        flat = factors[0].new_empty(_length(factors))
        grads = _parts(flat, factors)
        pieces = iter(grads)
        for i, (block, scale) in enumerate(zip(blocks, scales, strict=True)):
            down, up = factors[2 * i], factors[2 * i + 1]
            wide = block.to(flat.dtype)
            for a, b in ((up.t(), wide), (wide, down.t())):
                out = next(pieces)
                torch.mm(a.to(flat.dtype), b.to(flat.dtype), out=out)
                if scale != 1:
                    out.mul_(scale)
        return flat, grads


@torch.library.register_fake('cdra_mm::adapted_copies', lib=_LIBRARY)
def _(weights, plain, factors, indices, counts, scales, dtype):  # type: ignore[no-untyped-def]
    return weights[0].new_empty(_length([*weights, *plain]), dtype=dtype)


@torch.library.register_fake('cdra_mm::factor_gradients', lib=_LIBRARY)
def _(blocks, factors, scales):  # type: ignore[no-untyped-def]
    return factors[0].new_empty(_length(factors))


def _plainly(device: torch.device) -> AbstractContextManager[Any]:
    """Without gradients, and without autocast, which stays on inside an operation."""
    on = torch.is_grad_enabled() or torch.is_autocast_enabled(device.type)
    return _both_off(device) if on else nullcontext()


@contextmanager
def _both_off(device: torch.device) -> Iterator[None]:
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _take_kernels(
    matrices: Sequence[Tensor],
    factors: Sequence[Tensor],
    dtype: torch.dtype,
    indices: Sequence[Tensor] = (),
) -> bool:
    """Whether the kernels run there and know the types: one of the matrices, fp32 factors."""
    device = matrices[0].device
    if not kernels_run(device):
        return False
    # They read addresses: one of another device's memory would end the process's use of the GPU.
    # What torch's operations say about it is said where they are taken instead.
    if any(tensor.device != device for tensor in (*matrices, *factors, *indices)):
        return False
    known = {matrix.dtype for matrix in matrices} | {dtype} <= set(KERNEL_DTYPES)
    known = known and all(factor.dtype == torch.float32 for factor in factors)
    if not known:
        types = sorted({str(t.dtype) for t in (*matrices, *factors)} | {str(dtype)})
        _say_slower(device, f'know fp32, bf16 and fp16 over fp32 factors, not {", ".join(types)}')
        return False
    if not all(factor.is_contiguous() for factor in factors):
        _say_slower(device, 'need contiguous factors, not parts of larger ones')
        return False
    return len({matrix.dtype for matrix in matrices}) == 1


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
    from .block_kernels import check_kernels

    check_kernels(device)


@cache
def _say_slower(device: torch.device, why: str) -> None:
    """Once for each reason."""
    warnings.warn(
        f'training on {device} is slower than it could be: the kernels for blocks {why}',
        stacklevel=3,
    )
