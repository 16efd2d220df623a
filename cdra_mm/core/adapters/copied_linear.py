"""The adapted product through a copy of the weight that holds the update (Eq. 6).

    y = x W'^T + b,   W' = round(W + sum_i scale_i * scatter_{R_i, C_i}(up_i down_i))

W' is in the type that the product is computed in, and all layers' are made together, once a
forward (`copied_weights`): what autocast does with a frozen weight at every product, with the
update written in. So forward and input gradient are one ordinary product each. An update is lost in
the rounding no more than in mixed-precision fine-tuning, which rounds its fp32 weights likewise.

    G_i = dy[:, R_i]^T x[:, C_i],   ddown_i = scale_i up_i^T G_i,   dup_i = scale_i G_i down_i^T

Few launches is what this is made for: on a GPU they, and passes over the activations, are what
an adapter costs. On a CPU arithmetic costs: a small model's copies are kept there (`kept_copies`),
a large one's products are those of `compact_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .block_index import columns_apart, columns_of
from .block_updates import block_updates
from .compact_linear import autocast_type, scaled
from .joint_blocks import JointBlocks
from .layer_copy import Copy, Layer, Trained, copy_layers, is_remade

__all__ = ['copied_linear']

# Products that are made in vain where the blocks of a fused layer are multiplied as one, over
# what a launch of its own costs (about 2 us): tokens times entries outside of the blocks.
WASTED_PRODUCTS = 5e8
NOTHING = Trained((), ())


def copied_linear(
    x: Tensor, layer: Layer, copy: Copy | None = None, trained: Trained | None = None
) -> Tensor:
    """``F.linear`` with the weight's compact adapters (CDRA-SPT, Eq. 6).

    Args:
        x: ``[..., I]``.
        layer: Weight, bias, blocks and factors. The weight gets no gradient.
        copy: That of the layer as it is now, in the type of the product, where one was made
            before; otherwise it is made here.
        trained: `block_updates` of the layer in that type, likewise.

    Returns:
        ``[..., O]``. Under autocast in the autocast type, as ``F.linear``.
    """
    under_autocast = autocast_type(x)
    if under_autocast is not None:
        x = x.to(under_autocast)
    elif x.dtype != layer.weight.dtype:
        return F.linear(x, layer.weight, layer.bias)  # which refuses it
    copy = copy or copy_layers([layer], x.dtype)[0]
    if trained is None:
        asked = torch.is_grad_enabled()
        trained = block_updates([layer], x.dtype, copy.kept)[0] if asked else NOTHING
    what = copy.weight, copy.bias, copy.kept, trained.through
    y: Tensor = _CopiedLinear.apply(
        x, layer.weight, layer.bias, what, tuple(layer.joint), tuple(layer.factors), *trained.inputs
    )
    return y


class _CopiedLinear(torch.autograd.Function):
    """Its last inputs get gradients: of each block the update or the factors, or none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        weight, bias, (copy, bias_copy, ctx.kept, ctx.through), blocks, factors, *trained = rest
        joint = JointBlocks(*blocks)
        if bias_copy is None:
            bias_copy = bias if bias is None or bias.dtype == x.dtype else bias.to(x.dtype)
        ctx.joint, ctx.remade = joint, is_remade(weight, x.dtype)
        ctx.bias_type = None if bias is None else bias.dtype
        saved = [weight if ctx.remade else copy]
        if trained:
            whole = sum(joint.widths) >= x.shape[-1]  # kept as it is where that is less
            saved.append(x if whole else columns_apart(_flat(x), joint.cols))
        if ctx.remade or not all(ctx.through):
            saved += factors
        ctx.save_for_backward(*saved)
        return F.linear(x, copy, bias_copy)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, *factors = ctx.saved_tensors
        x_c = factors.pop(0) if ctx.through else None
        joint: JointBlocks = ctx.joint
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            if ctx.remade:
                weight = copy_layers([Layer(weight, None, joint, factors)], dy.dtype)[0].weight
            dx = dy @ weight
        dy = _flat(dy)
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(0, dtype=ctx.bias_type)
        grads: Sequence[Tensor | None] = [None] * len(ctx.needs_input_grad[6:])
        if x_c is not None and any(ctx.needs_input_grad[6:]):
            if sum(joint.widths) >= weight.shape[1]:
                x_c = columns_of(_flat(x_c), joint.cols)
            gradients = _gradients_apart if ctx.kept else _gradients
            grads = gradients(columns_of(dy, joint.rows), x_c, joint, factors, ctx.through)
        return dx, None, dbias, None, None, None, *grads


def _flat(x: Tensor) -> Tensor:
    """``[..., N]`` as ``[T, N]``."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _gradients(
    dy_r: Tensor, x_c: Tensor, joint: JointBlocks, factors: list[Tensor], through: Sequence[bool]
) -> list[Tensor]:
    """Of what is trained, from the rows of dy ``[T, sum |R|]`` and columns of x ``[T, sum |C|]``.

    By one product of all blocks where that makes little in vain.
    """
    if through == (True,):
        return [dy_r.t() @ x_c]
    heights, widths = joint.heights, joint.widths
    wasted = sum(heights) * sum(widths) - joint.size
    if dy_r.shape[0] * wasted > WASTED_PRODUCTS or not all(through):
        return _gradients_apart(dy_r, x_c, joint, factors, through)
    rows = (dy_r.t() @ x_c).split_with_sizes(heights)
    begins = accumulate(widths, initial=0)
    return [row.narrow(1, b, w) for row, b, w in zip(rows, begins, widths, strict=False)]


def _gradients_apart(
    dy_r: Tensor, x_c: Tensor, joint: JointBlocks, factors: list[Tensor], through: Sequence[bool]
) -> list[Tensor]:
    """The same by products of each block, as is best on a CPU, where arithmetic costs."""
    if torch.is_autocast_enabled(dy_r.device.type):
        with torch.autocast(dy_r.device.type, enabled=False):
            return _gradients_apart(dy_r, x_c, joint, factors, through)
    grads: list[Tensor] = []
    for i, (d, x) in enumerate(_parts(dy_r, x_c, joint)):
        if through[i]:
            grads.append(d.t() @ x)
        else:
            grads += _through_factors(d, x, factors[2 * i], factors[2 * i + 1], joint.scales[i])
    return grads


def _parts(dy_r: Tensor, x_c: Tensor, joint: JointBlocks) -> Sequence[tuple[Tensor, Tensor]]:
    """Rows of dy and columns of x of each block."""
    if len(joint.scales) == 1:
        return [(dy_r, x_c)]
    rows = dy_r.split_with_sizes(joint.heights, 1)
    cols = x_c.split_with_sizes(joint.widths, 1)
    return list(zip(rows, cols, strict=True))


def _through_factors(d: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> list[Tensor]:
    """Of one block's factors, by four skinny products."""
    d_hidden = d @ scaled(up, scale).to(d.dtype)
    hidden = scaled(F.linear(x, down.to(d.dtype)), scale)
    return [(d_hidden.t() @ x).to(down.dtype), (d.t() @ hidden).to(up.dtype)]
