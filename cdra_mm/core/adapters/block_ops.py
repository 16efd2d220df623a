"""Two operations on the blocks of layers, each a launch or two on a GPU.

``cdra_mm::adapted_copies``    W' of all layers, in the type that it is multiplied in
``cdra_mm::factor_gradients``  the gradients of a layer's factors

Registered with torch, so that `torch.compile` takes each as one operation. On an NVIDIA GPU with
Triton they run the kernels of `block_kernels` and `gradient_kernels`; what is here runs everywhere
else, and says what the kernels compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..flat_layout import known_layout, layout_of
from .block_index import columns_of
from .kernel_choice import take_kernels

if TYPE_CHECKING:
    from .kernel_launches import Launch

__all__ = [
    'adapted_copies',
    'factor_gradients',
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
    'factor_gradients(Tensor dy, Tensor x, int[] begins, Tensor[] factors, Tensor[] indices, '
    'float[] scales) -> Tensor'
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
    dy: Tensor,
    x: Tensor,
    begins: Sequence[int],
    factors: Sequence[Tensor],
    indices: Sequence[Tensor],
    scales: Sequence[float],
) -> list[Tensor]:
    """The gradients of a layer's factors, by the gradient G of each block, in the factors' type.

        G = dy[:, R]^T x[:, C],   d down = scale up^T G,   d up = scale G down^T

    Args:
        dy: Gradient of the layer's output ``[T, O]``.
        x: Its input ``[T, I]``, in the type of `dy`.
        begins: Where the columns of each block begin in `x`, if it holds those alone; empty if it
            is whole.
        factors: ``down [r, |C|], up [|R|, r]`` of each block in turn.
        indices: Rows and columns of each block, int64 ``[|R|], [|C|]``.
        scales: Factor of each block's update.

    Returns:
        The gradients, in the order of `factors`. They lie in one tensor, but a write to one is none
        to another (`Tensor._version`).
    """
    arguments = dy, x, begins, factors, indices, scales
    if _is_eager(dy):
        return [part.data for part in _take_gradients(*arguments)[1]]
    flat = torch.ops.cdra_mm.factor_gradients(*arguments)
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
        The launch of the kernel, where one was taken; see `kernel_launches.Launch`.
    """
    if take_kernels((*weights, *indices), weights, factors, flat.dtype):
        from .block_kernels import write_blocks as launch

        return launch(flat, weights, factors, indices, counts, scales)
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
    dy: Tensor,
    x: Tensor,
    begins: Sequence[int],
    factors: Sequence[Tensor],
    indices: Sequence[Tensor],
    scales: Sequence[float],
) -> tuple[Tensor, list[Tensor]]:
    """The flat tensor, and its parts."""
    if _is_watched(dy.device):
        with plainly(dy.device):
            return _take_gradients(dy, x, begins, factors, indices, scales)
    layout = known_layout(_shapes(factors))
    flat = factors[0].new_empty(layout.length)
    write_factor_gradients(flat, dy, x, begins, factors, indices, scales)
    return flat, layout.parts(flat)


def write_factor_gradients(
    flat: Tensor,
    dy: Tensor,
    x: Tensor,
    begins: Sequence[int],
    factors: Sequence[Tensor],
    indices: Sequence[Tensor],
    scales: Sequence[float],
) -> Launch | None:
    """`factor_gradients` into a flat tensor, as `flat_layout` lays them out.

    Args:
        flat: Of the factors' type.
        dy: See `factor_gradients`.
        x: Likewise.
        begins: Likewise.
        factors: Likewise.
        indices: Likewise.
        scales: Likewise.

    Returns:
        The launch of the kernels, where they were taken; see `kernel_launches.Launch`.
    """
    if take_kernels(indices, (dy, x), factors, flat.dtype):
        from .gradient_kernels import write_factor_gradients as launch

        return launch(flat, dy, x, begins, factors, indices, scales)
    grads = known_layout(_shapes(factors)).parts(flat)
    for i, scale in enumerate(scales):
        down, up = (factor.to(flat.dtype) for factor in factors[2 * i : 2 * i + 2])
        rows, cols = indices[2 * i : 2 * i + 2]
        x_c = x.narrow(1, begins[i], len(cols)) if begins else columns_of(x, cols)
        block = torch.mm(columns_of(dy, rows).t(), x_c).to(flat.dtype)
        for a, b, out in ((up.t(), block, grads[2 * i]), (block, down.t(), grads[2 * i + 1])):
            torch.mm(a, b, out=out)
            if scale != 1:
                out.mul_(scale)
    return None


@torch.library.register_fake('cdra_mm::adapted_copies', lib=_LIBRARY)
def _(weights, plain, factors, indices, counts, scales, dtype):  # type: ignore[no-untyped-def]
    return weights[0].new_empty(layout_of(_shapes([*weights, *plain])).length, dtype=dtype)


@torch.library.register_fake('cdra_mm::factor_gradients', lib=_LIBRARY)
def _(dy, x, begins, factors, indices, scales):  # type: ignore[no-untyped-def]
    return factors[0].new_empty(layout_of(_shapes(factors)).length)


def _is_watched(device: torch.device) -> bool:
    """Whether gradients or autocast are on: they stay on inside an operation."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled(device.type)


@contextmanager
def plainly(device: torch.device) -> Iterator[None]:
    """Without gradients and autocast."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
