"""The updates of blocks as autograd sees them: what their gradients are asked of.

    G = dL / d(up down),   ddown = scale up^T G,   dup = scale G down^T          (Eq. 6)

A layer's backward gives the gradients G of its blocks alone. Those of all factors of a model are
taken of them together, by one node of the graph, when all layers' are there: on a GPU a few
launches a step, and little work for the host, whose time is what an eager step takes there. Nobody
reads the values of an update, so it has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .block_ops import factor_gradients
from .compact_linear import through_block
from .layer_copy import Layer, Trained, versions_of

__all__ = ['block_updates']

# Beyond it a block's gradient, |R| |C| products a token, costs more than the four skinny products
# through its factors. By arithmetic for an H100 (both are then about 20 us for 6,000 tokens), not
# measured.
LARGEST_BLOCK = 2**19


def block_updates(layers: Sequence[Layer], dtype: torch.dtype, kept: bool) -> list[Trained]:
    """The updates of each layer's blocks, ``[|R|, |C|]`` each, without values.

    The factors themselves of the blocks whose factors get their gradients by skinny products.

    Args:
        layers: At least one, all on one device.
        dtype: Type of the products, and so of the blocks' gradients.
        kept: Whether their copies are those that a CPU keeps.
    """
    through = [tuple(_goes_through(*block, kept) for block in _sizes(layer)) for layer in layers]
    scales: list[float] = []
    factors: list[Tensor] = []
    for layer, each in zip(layers, through, strict=True):
        for i, taken in enumerate(each):
            if taken:
                scales.append(layer.joint.scales[i])
                factors += layer.factors[2 * i : 2 * i + 2]
    made = iter(_BlockUpdates.apply(tuple(scales), dtype, *factors) if factors else ())
    trained = []
    for layer, each in zip(layers, through, strict=True):
        inputs: list[Tensor] = []
        for i, taken in enumerate(each):
            inputs += [next(made)] if taken else layer.factors[2 * i : 2 * i + 2]
        trained.append(Trained(tuple(inputs), each))
    return trained


def _sizes(layer: Layer) -> Iterator[tuple[int, int, int]]:
    """|R|, |C| and r of each block."""
    ranks = (down.shape[0] for down in layer.factors[::2])
    return zip(layer.joint.heights, layer.joint.widths, ranks, strict=True)


def _goes_through(height: int, width: int, rank: int, kept: bool) -> bool:
    return through_block(height, width, rank) if kept else height * width <= LARGEST_BLOCK


class _BlockUpdates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scales: tuple[float, ...], dtype: torch.dtype, *factors: Any) -> Any:
        # Not saved as tensors are: who computes a layer again in the backward would find more of
        # them than in the forward, which took all layers' updates from one node.
        ctx.factors, ctx.scales, ctx.versions = factors, scales, versions_of(factors)
        ctx.set_materialize_grads(False)
        return tuple(
            up.new_empty_strided((up.shape[0], down.shape[1]), (0, 0), dtype=dtype)
            for down, up in zip(factors[::2], factors[1::2], strict=True)
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *blocks: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.versions != versions_of(ctx.factors):
            raise RuntimeError(
                'the factors of an adapter were modified in place after the forward whose '
                'gradients are computed now: run the backward before the optimizer steps'
            )
        grads: list[Tensor | None] = [None] * len(ctx.factors)
        there = [i for i, block in enumerate(blocks) if block is not None]
        if there:
            given = [factor for i in there for factor in ctx.factors[2 * i : 2 * i + 2]]
            found = factor_gradients(
                [block for block in blocks if block is not None],
                given,
                [ctx.scales[i] for i in there],
            )
            for at, i in enumerate(there):
                grads[2 * i : 2 * i + 2] = found[2 * at : 2 * at + 2]
        return None, None, *grads
