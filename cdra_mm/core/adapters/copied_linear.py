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
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..once_differentiable import once_differentiable
from .block_index import columns_apart, columns_of
from .block_ops import factor_gradients
from .compact_linear import autocast_type, scaled, through_block
from .joint_blocks import JointBlocks
from .layer_copy import Copy, Layer, copy_layers, is_remade
from .native_linear import NATIVE

__all__ = ['copied_linear', 'multiply_by_copy']

# Beyond it a block's gradient, |R| |C| products a token, costs more than the four skinny products
# through its factors. By arithmetic for an H100 and 6,000 tokens, not measured.
LARGEST_BLOCK = 2**19


def copied_linear(x: Tensor, layer: Layer, copy: Copy | None = None) -> Tensor:
    """``F.linear`` with the weight's compact adapters (CDRA-SPT, Eq. 6).

    Args:
        x: ``[..., I]``.
        layer: Weight, bias, blocks and factors. The weight gets no gradient.
        copy: That of the layer as it is now, in the type of the product, where one was made
            before; otherwise it is made here.

    Returns:
        ``[..., O]``. Under autocast in the autocast type, as ``F.linear``.
    """
    under_autocast = autocast_type(x)
    if under_autocast is not None:
        x = x.to(under_autocast)
    elif x.dtype != layer.weight.dtype:
        return F.linear(x, layer.weight, layer.bias)  # which refuses it
    return multiply_by_copy(x, layer, copy or copy_layers([layer], x.dtype)[0])


def multiply_by_copy(x: Tensor, layer: Layer, copy: Copy) -> Tensor:
    """`copied_linear` of an input in the type of the copy."""
    weight, bias, joint, factors = layer
    if not torch.compiler.is_compiling():
        native = NATIVE.take(x.device, copy.kept)
        if native is not None and not is_remade(weight, x.dtype):
            made = native.copied_linear(
                x, copy.weight, copy.bias, bias, joint, factors, copy.kept, weight
            )
            if made is not None:
                return cast(Tensor, made)
    trained = torch.is_grad_enabled() and any([factor.requires_grad for factor in factors])
    if not torch.compiler.is_compiling():
        return cast(Tensor, _CopiedLinear.apply(x, weight, bias, (*copy, trained), joint, *factors))
    # Traced it takes no other tuples of tensors; and a view, as it would give of an input of three
    # dimensions, may not be written to.
    y = _CopiedLinear.apply(_flat(x), weight, bias, (*copy, trained), tuple(joint), *factors)
    return cast(Tensor, y.view(*x.shape[:-1], y.shape[-1]))


class _CopiedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        weight, bias, (copy, bias_copy, ctx.kept, trained), joint, *factors = rest
        if not isinstance(joint, JointBlocks):
            joint = JointBlocks(*joint)
        if bias_copy is None:
            bias_copy = bias if bias is None or bias.dtype == x.dtype else bias.to(x.dtype)
        remade = is_remade(weight, x.dtype)
        ctx.joint, ctx.remade, ctx.trained = joint, remade, trained
        ctx.bias_type = None if bias is None else bias.dtype
        ctx.gathered = joint.width < x.shape[-1]  # otherwise x is kept as it is: that is less
        saved = [weight if remade else copy]
        if trained:
            saved.append(columns_apart(_flat(x), joint.cols) if ctx.gathered else x)
        if trained or remade:
            saved += factors
        ctx.save_for_backward(*saved)
        y = F.linear(x, copy, bias_copy)
        # Of an input of three dimensions it is a view of what was made here, to which autograd lets
        # nobody write: mmcv's feed-forward networks have ReLU(inplace=True).
        return y if torch.compiler.is_compiling() else y.data

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, *rest = ctx.saved_tensors
        x_c, factors = (rest[0], rest[1:]) if ctx.trained else (None, rest)
        joint: JointBlocks = ctx.joint
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            if ctx.remade:
                weight = copy_layers([Layer(weight, None, joint, factors)], dy.dtype)[0].weight
            dx = dy @ weight
        dy = _flat(dy)
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(0, dtype=ctx.bias_type)
        if x_c is None:
            grads: Sequence[Tensor | None] = [None] * len(ctx.needs_input_grad[5:])
        else:
            given = dy, _flat(x_c), ctx.gathered, joint
            if ctx.kept:
                grads = _gradients_apart(*_taken(*given), joint, factors)
            else:
                grads = _gradients(*given, factors)
        return dx, None, dbias, None, None, *grads


def _flat(x: Tensor) -> Tensor:
    """``[..., N]`` as ``[T, N]``."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _gradients(
    dy: Tensor, x: Tensor, gathered: bool, joint: JointBlocks, factors: list[Tensor]
) -> list[Tensor]:
    """Of all factors, from dy ``[T, O]`` and x ``[T, I]``, or the columns of the blocks."""
    if joint.largest > LARGEST_BLOCK:
        return _through_factors(*_taken(dy, x, gathered, joint), joint, factors)
    begins = joint.begins if gathered else ()
    return factor_gradients(dy, x, begins, factors, joint.indices, joint.scales)


def _taken(dy: Tensor, x: Tensor, gathered: bool, joint: JointBlocks) -> tuple[Tensor, Tensor]:
    """Rows of dy ``[T, sum |R|]`` and columns of x, as many as `joint` takes."""
    return columns_of(dy, joint.rows), x if gathered else columns_of(x, joint.cols)


def _gradients_apart(
    dy_r: Tensor, x_c: Tensor, joint: JointBlocks, factors: list[Tensor]
) -> list[Tensor]:
    """Of each block by the way that costs less on a CPU."""
    if torch.is_autocast_enabled('cpu'):
        with torch.autocast('cpu', enabled=False):
            return _gradients_apart(dy_r, x_c, joint, factors)
    grads: list[Tensor] = []
    for i, (d, x) in enumerate(_parts(dy_r, x_c, joint)):
        down, up, scale = factors[2 * i], factors[2 * i + 1], joint.scales[i]
        if through_block(joint.heights[i], joint.widths[i], down.shape[0]):
            block = scaled(torch.mm(d.t(), x), scale).to(up.dtype)
            grads += [torch.mm(up.t(), block), torch.mm(block, down.to(up.dtype).t())]
        else:
            grads += _through(d, x, down, up, scale)
    return grads


def _parts(dy_r: Tensor, x_c: Tensor, joint: JointBlocks) -> Sequence[tuple[Tensor, Tensor]]:
    """Rows of dy and columns of x of each block."""
    if len(joint.scales) == 1 and joint.width == joint.widths[0]:
        return [(dy_r, x_c)]
    rows = dy_r.split_with_sizes(joint.heights, 1)
    places = zip(joint.begins, joint.widths, strict=True)
    return [(d, x_c.narrow(1, *place)) for d, place in zip(rows, places, strict=True)]


def _through_factors(
    dy_r: Tensor, x_c: Tensor, joint: JointBlocks, factors: list[Tensor]
) -> list[Tensor]:
    grads = []
    for i, (d, x) in enumerate(_parts(dy_r, x_c, joint)):
        grads += _through(d, x, factors[2 * i], factors[2 * i + 1], joint.scales[i])
    return grads


def _through(d: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> list[Tensor]:
    """Of one block's factors, by four skinny products."""
    d_hidden = d @ scaled(up, scale).to(d.dtype)
    hidden = scaled(F.linear(x, down.to(d.dtype)), scale)
    return [(d_hidden.t() @ x).to(down.dtype), (d.t() @ hidden).to(up.dtype)]


NATIVE.tell(LARGEST_BLOCK, _gradients)
