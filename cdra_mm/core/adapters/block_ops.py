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
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..flat_layout import known_layout, layout_of
from ..triton_support import KERNEL_DTYPES, failure_of, missing_for_kernels

if TYPE_CHECKING:
    from .block_kernels import Launch

__all__ = [
    'adapted_copies',
    'factor_gradients',
    'kernels_run',
    'plainly',
    'write_blocks',
    'write_factor_gradients',
]


_LIBRARY = torch.library.Library('cdra_mm', 'FRAGMENT')  # type: ignore[no-untyped-call]
# An operation is a whole to torch.compile: it must not trace into it while a compiled model runs.
# What `torch.library.custom_op` does; the public `torch.compiler.disable` loads the compiler.
_not_traced: Any = torch._disable_dynamo
_define: Any = _LIBRARY.define  # torch has no types for it
_define(
    'adapted_copies(Tensor[] weights, Tensor[] plain, Tensor[] factors, Tensor[] indices, '
    'int[] counts, float[] scales, ScalarType dtype) -> Tensor'
)
_define(
    'factor_gradients(Tensor gradient, int[] places, Tensor[] factors, float[] scales) -> Tensor'
)


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
    flat = torch.ops.cdra_mm.adapted_copies(*arguments)
    return layout_of(_shapes([*weights, *plain])).parts(flat)


def _is_eager(tensor: Tensor) -> bool:
    """Whether nothing looks at operations as such: then there is no need to go through torch's."""
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()
    return not watched and type(tensor) in (Tensor, nn.Parameter)


def _shapes(tensors: Sequence[Tensor]) -> tuple[torch.Size, ...]:
    return tuple([tensor.shape for tensor in tensors])


def factor_gradients(
    gradient: Tensor,
    places: Sequence[int],
    factors: Sequence[Tensor],
    scales: Sequence[float],
    also: Sequence[int] = (),
) -> list[Tensor]:
    """``scale up^T G`` and ``scale G down^T`` of each block, in the factors' type.

    Args:
        gradient: Holds the gradient of each block, G ``[|R|, |C|]``.
        places: Where the first entry of each block lies in it, and how far its rows are apart:
            ``begin, stride, ...``
        factors: ``down [r, |C|], up [|R|, r]`` of each block in turn.
        scales: Factor of each block's update.
        also: Where they may lie in a CUDA graph that is captured later.

    Returns:
        The gradients, in the order of `factors`, in the type of the first. They lie in one tensor,
        but a write to one is none to another (`Tensor._version`).
    """
    if _is_eager(gradient):
        _, parts = _take_gradients(gradient, places, factors, scales, also)
        return [part.data for part in parts]
    flat = torch.ops.cdra_mm.factor_gradients(gradient, places, factors, scales)
    return layout_of(_shapes(factors)).parts(flat)


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
    if _is_watched(weights[0].device):
        with plainly(weights[0].device):
            return _make_copies(weights, plain, factors, indices, counts, scales, dtype)
    sources = [*weights, *plain]
    layout = known_layout(_shapes(sources))
    flat = sources[0].new_empty(layout.length, dtype=dtype)
    copies = layout.parts(flat)
    torch._foreach_copy_(copies, sources)
    write_blocks(flat, copies, weights, factors, indices, counts, scales)
    return flat, copies


def write_blocks(
    flat: Tensor,
    copies: Sequence[Tensor],
    weights: Sequence[Tensor],
    factors: Sequence[Tensor],
    indices: Sequence[Tensor],
    counts: Sequence[int],
    scales: Sequence[float],
) -> Launch | None:
    """Writes the blocks of `adapted_copies` into copies that are as yet plain.

    Args:
        flat: All copies, as `flat_layout` lays them out.
        copies: Its parts.
        weights: See `adapted_copies`.
        factors: Likewise.
        indices: Likewise.
        counts: Likewise.
        scales: Likewise.

    Returns:
        The launch of the kernel, where one was taken; see `block_kernels.Launch`.
    """
    contiguous = all([tensor.is_contiguous() for tensor in (*weights, *indices)])
    if contiguous and _take_kernels((*weights, *indices), weights, factors, flat.dtype):
        return cast(
            'Launch | None',
            _kernels().write_blocks(flat, weights, factors, indices, counts, scales),
        )
    first = 0
    for copy, weight, count in zip(copies, weights, counts, strict=False):
        for i in range(first, first + count):
            rows, cols = indices[2 * i][:, None], indices[2 * i + 1][None, :]
            down, up = factors[2 * i], factors[2 * i + 1]
            copy[rows, cols] = torch.add(
                weight[rows, cols], up @ down.to(up.dtype), alpha=scales[i]
            ).to(flat.dtype)
        first += count
    return None


@torch.library.impl(_LIBRARY, 'factor_gradients', 'CompositeExplicitAutograd')
@_not_traced  # type: ignore[untyped-decorator]
def _(*arguments: Any) -> Tensor:
    return _take_gradients(*arguments)[0]


def _take_gradients(
    gradient: Tensor,
    places: Sequence[int],
    factors: Sequence[Tensor],
    scales: Sequence[float],
    also: Sequence[int] = (),
) -> tuple[Tensor, list[Tensor]]:
    """The flat tensor, and its parts."""
    if _is_watched(gradient.device):
        with plainly(gradient.device):
            return _take_gradients(gradient, places, factors, scales, also)
    layout = known_layout(_shapes(factors))
    flat = factors[0].new_empty(layout.length)
    write_factor_gradients(flat, gradient.contiguous(), places, factors, scales, also)
    return flat, layout.parts(flat)


def write_factor_gradients(
    flat: Tensor,
    gradient: Tensor,
    places: Sequence[int],
    factors: Sequence[Tensor],
    scales: Sequence[float],
    also: Sequence[int] = (),
) -> Launch | None:
    """`factor_gradients` into a flat tensor, as `flat_layout` lays them out.

    Args:
        flat: Of the factors' type.
        gradient: See `factor_gradients`; contiguous.
        places: Likewise.
        factors: Likewise.
        scales: Likewise.
        also: Likewise.

    Returns:
        See `write_blocks`.
    """
    if _take_kernels((gradient,), (gradient,), factors, gradient.dtype):
        return cast(
            'Launch | None',
            _kernels().write_factor_gradients(flat, gradient, places, factors, scales, also),
        )
    grads = known_layout(_shapes(factors)).parts(flat)
    for i, scale in enumerate(scales):
        down, up = (factor.to(flat.dtype) for factor in factors[2 * i : 2 * i + 2])
        begin, stride = places[2 * i : 2 * i + 2]
        begin += int(gradient.storage_offset())
        block = gradient.as_strided((len(up), down.shape[1]), (stride, 1), begin)
        block = block.to(flat.dtype)
        for a, b, out in ((up.t(), block, grads[2 * i]), (block, down.t(), grads[2 * i + 1])):
            torch.mm(a, b, out=out)
            if scale != 1:
                out.mul_(scale)
    return None


@torch.library.register_fake('cdra_mm::adapted_copies', lib=_LIBRARY)
def _(weights, plain, factors, indices, counts, scales, dtype):  # type: ignore[no-untyped-def]
    return weights[0].new_empty(layout_of(_shapes([*weights, *plain])).length, dtype=dtype)


@torch.library.register_fake('cdra_mm::factor_gradients', lib=_LIBRARY)
def _(gradient, places, factors, scales):  # type: ignore[no-untyped-def]
    return factors[0].new_empty(layout_of(_shapes(factors)).length)


def _is_watched(device: torch.device) -> bool:
    """Whether gradients or autocast are on: they stay on inside an operation."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled(device.type)


@contextmanager
def plainly(device: torch.device) -> Iterator[None]:
    """Without gradients and autocast."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _take_kernels(
    others: Sequence[Tensor],
    matrices: Sequence[Tensor],
    factors: Sequence[Tensor],
    dtype: torch.dtype,
) -> bool:
    """Whether the kernels run there and know the types: one of the matrices, fp32 factors.

    Args:
        others: All that they read beside the factors.
        matrices: Those of them that have the type of the weights.
        factors: The factors.
        dtype: Type of what they write.
    """
    device = matrices[0].device
    if not kernels_run(device):
        return False
    # They read addresses: one of another device's memory would end the process's use of the GPU.
    # What torch's operations say about it is said where they are taken instead.
    for tensor in others:
        if tensor.device != device:
            return False
    known = dtype in KERNEL_DTYPES
    for factor in factors:
        if factor.device != device:
            return False
        known = known and factor.dtype is torch.float32
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
def _kernels() -> Any:
    from . import block_kernels

    return block_kernels


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
    _kernels().check_kernels(device)


@cache
def _say_slower(device: torch.device, why: str) -> None:
    """Once for each reason."""
    warnings.warn(
        f'training on {device} is slower than it could be: the kernels for blocks {why}',
        stacklevel=3,
    )
