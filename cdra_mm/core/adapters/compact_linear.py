"""The forward and backward of a linear layer with compact adapters (CDRA-SPT, Eq. 6).

    y = x (W + sum_i scale_i * scatter_{R_i, C_i}(up_i down_i))^T + b

Legend: T tokens (all leading dimensions), I in, O out, r rank, i adapters; dy_R are
the selected columns of the output's gradient, x_C those of the input. Only x_C is
kept for the backward (LoRA keeps x). One small factor at full width serves all
adapters of a fused layer: ``DOWN [sum r, I]``, ``UP [O, sum r]``, scale included.

========  ==============================  ===============================
strategy  forward                         gradient of the input
========  ==============================  ===============================
merged    ``y = x (W + UP DOWN)^T``       ``dx = dy (W + UP DOWN)``
factored  ``h_i = x_C down_i^T``,         ``dh_i = dy_R up_i``,
          ``y = x W^T + h UP^T``          ``dx = dy W + dh DOWN``
========  ==============================  ===============================

*Merged* copies the weight twice and adds r products per entry, where *factored*
reads and writes y and dx once more: it is taken for many tokens. And in full
precision only: rounded to half precision, W would swallow a small update.

The gradients of the factors go through the factors, or (merged only) through the
gradient of the block, one product in the place of four skinny ones:

    ddown = dh^T x_C,   dup = dy_R^T h
    G = dy_R^T x_C,     ddown = up^T G,   dup = G down^T
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..once_differentiable import once_differentiable
from .block_index import BlockIndex, Index, columns_apart, columns_of, length_of

__all__ = ['autocast_type', 'compact_linear', 'scaled', 'through_block', 'wide_factors']

Blocks = tuple[BlockIndex, ...]

# Merged where the activations are this many times the weight: T (O + I) >= MANY_TOKENS * O I.
MANY_TOKENS = 2.5
# Through the block where |R||C| <= SMALL_BLOCK * (|R|+|C|), or r in its place: below it a skinny
# product costs as much as one of this width. Both were measured on a CPU: docs/performance.md.
SMALL_BLOCK = 64


def compact_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    blocks: Sequence[BlockIndex],
    factors: Sequence[Tensor],
    dropouts: Sequence[float] = (),
) -> Tensor:
    """``F.linear`` with the weight's compact adapters (CDRA-SPT, Eq. 6).

    Args:
        x: ``[..., I]``.
        weight: Base weight ``[O, I]``; it gets no gradient.
        bias: ``[O]`` or None.
        blocks: Rows, columns and scale of each adapter, in the full weight: int64 ``[|R|]`` and
            ``[|C|]``, or slices with start and stop.
        factors: ``down [r, |C|], up [|R|, r]`` of each adapter in turn.
        dropouts: Probability of dropping an input of each adapter, in training.

    Returns:
        ``[..., O]``. Under autocast in the autocast type, as ``F.linear``.
    """
    if any(dropouts):
        return _dropped(x, weight, bias, blocks, factors, dropouts)
    dtype = autocast_type(x)
    if dtype is not None:
        with torch.autocast(x.device.type, enabled=False):
            bias = None if bias is None else bias.to(dtype)
            return _apply(x.to(dtype), weight.to(dtype), bias, blocks, factors)
    return _apply(x, weight, bias, blocks, factors)


def autocast_type(x: Tensor) -> torch.dtype | None:
    """The type in which autocast multiplies where a tensor lies, None where it is off."""
    device = x.device.type
    if device == 'meta' or not torch.is_autocast_enabled(device):  # it knows no meta device
        return None
    return torch.get_autocast_dtype(device)


def _apply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    blocks: Sequence[BlockIndex],
    factors: Sequence[Tensor],
) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    strategy = _MergedLinear if takes_merged(flat, weight) else _FactoredLinear
    factors = [factor.to(x.dtype) for factor in factors]
    y: Tensor = strategy.apply(flat, weight, bias, tuple(blocks), *factors)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _dropped(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    blocks: Sequence[BlockIndex],
    factors: Sequence[Tensor],
    dropouts: Sequence[float],
) -> Tensor:
    """The base sees the whole input, each adapter its own draw of it."""
    y = F.linear(x, weight, bias)
    each = zip(blocks, factors[::2], factors[1::2], dropouts, strict=True)
    for (rows, cols, scale), down, up, dropout in each:
        x_c = F.dropout(
            x[..., cols] if isinstance(cols, slice) else x.index_select(-1, cols), dropout
        )
        update = (F.linear(F.linear(x_c, down), up) * scale).to(y.dtype)
        if isinstance(rows, slice) and update.shape == y.shape:
            y = y + update
            continue
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=y.device)
        y = y.index_add(-1, rows, update)
    return y


def takes_merged(x: Tensor, weight: Tensor) -> bool:
    """Whether the weight is merged for an input ``[T, I]``; see the module's docstring."""
    many = x.shape[0] * sum(weight.shape) >= MANY_TOKENS * weight.numel()
    return many and (x.dtype == torch.float64 or (x.dtype == torch.float32 and _fp32_is_exact()))


def through_block(height: int, width: int, rank: int) -> bool:
    """Whether factors get their gradients through that of their block; see `SMALL_BLOCK`."""
    return height * width <= max(SMALL_BLOCK, rank) * (height + width)


def _fp32_is_exact() -> bool:
    """Whether a product keeps all digits of fp32, not those of TF32."""
    try:
        return torch.get_float32_matmul_precision() == 'highest'
    except RuntimeError:  # precisions set by torch's newer interface cannot be read by the older
        return False


# torch.compile cannot read the setting while it traces. `torch.compiler.assume_constant_result`
# sets this mark, after it has imported the compiler, which takes a second or two.
cast(Any, _fp32_is_exact)._dynamo_marked_constant = True


# Without gradients torch.compile calls a forward with its context only if the number of arguments
# (context left out) is not that of the parameters it declares. With `*rest` alone beside x it
# never is; with all of them declared and `*factors`, one adapter's two factors make it so.
def _unpacked(rest: Sequence[Any]) -> tuple[Tensor, Tensor | None, Blocks, Sequence[Tensor]]:
    """Weight, bias, blocks and factors."""
    weight, bias, blocks, *factors = rest
    return weight, bias, blocks, factors


class _MergedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        weight, bias, blocks, factors = _unpacked(rest)
        ctx.blocks = blocks
        ctx.save_for_backward(weight, *factors, *_kept(x, blocks))
        return F.linear(x, _merged(weight, blocks, factors), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, factors, kept = _saved(ctx)
        dx = None
        if ctx.needs_input_grad[0]:
            # Merged again, not kept: all the weights' copies would outweigh the activations.
            dx = dy @ _merged(weight, ctx.blocks, factors)
        grads: list[Tensor] = []
        for (rows, _, scale), down, up, x_c in _each(weight, ctx.blocks, factors, kept):
            dy_r = columns_of(dy, rows)
            if through_block(len(up), down.shape[1], len(down)):
                block = scaled(dy_r.t() @ x_c, scale)
                grads += [up.t() @ block, block @ down.t()]
            else:
                dh = dy_r @ scaled(up, scale)
                grads += [dh.t() @ x_c, scaled(dy_r.t() @ (x_c @ down.t()), scale)]
        return dx, None, _bias_gradient(ctx, dy), None, *grads


class _FactoredLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        weight, bias, blocks, factors = _unpacked(rest)
        kept = _kept(x, blocks)
        each = _each(weight, blocks, factors, kept)
        # Not x_c @ down.t(): the columns may lie transposed, see `columns_of`.
        hidden = torch.cat([(down @ x_c.t()).t() for _, down, _, x_c in each], 1)
        ctx.blocks = blocks
        ctx.save_for_backward(weight, *factors, *kept, hidden)
        return F.linear(x, weight, bias).addmm_(hidden, _wide_up(weight, blocks, factors).t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, factors, (*kept, hidden) = _saved(ctx)
        grads: list[Tensor] = []
        d_hidden: list[Tensor] = []
        for (rows, _, scale), down, up, x_c in _each(weight, ctx.blocks, factors, kept):
            h, hidden = hidden[:, : len(down)], hidden[:, len(down) :]
            dy_r = columns_of(dy, rows)
            dh_t = scaled(up, scale).t() @ dy_r.t()
            d_hidden.append(dh_t)
            grads += [dh_t @ x_c, scaled(dy_r.t() @ h, scale)]
        dx = None
        if ctx.needs_input_grad[0]:
            wide = _wide_down(weight, ctx.blocks, factors)
            dx = (dy @ weight).addmm_(torch.cat([dh_t.t() for dh_t in d_hidden], 1), wide)
        return dx, None, _bias_gradient(ctx, dy), None, *grads


def _kept(x: Tensor, blocks: Blocks) -> list[Tensor]:
    """The columns of each adapter, or all of x where that is less."""
    if sum(length_of(cols) for _, cols, _ in blocks) >= x.shape[1]:
        return [x]
    return [columns_apart(x, cols) for _, cols, _ in blocks]


def _saved(ctx: Any) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """Weight, factors, and what follows them."""
    weight, *rest = ctx.saved_tensors
    return weight, rest[: 2 * len(ctx.blocks)], rest[2 * len(ctx.blocks) :]


def _each(
    weight: Tensor, blocks: Blocks, factors: Sequence[Tensor], kept: Sequence[Tensor]
) -> Iterator[tuple[BlockIndex, Tensor, Tensor, Tensor]]:
    """Block, down, up and selected columns of x of each adapter."""
    whole = kept[0].shape[1] == weight.shape[1]
    for i, block in enumerate(blocks):
        x_c = columns_of(kept[0], block[1]) if whole else kept[i]
        yield block, factors[2 * i], factors[2 * i + 1], x_c


def wide_factors(
    weight: Tensor, blocks: Sequence[BlockIndex], factors: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """All adapters of a weight as one: ``DOWN [sum r, I]`` and ``UP [O, sum r]``, scale included.

    Args:
        weight: Gives shape, type and device; its values are not read.
        blocks: See `compact_linear`.
        factors: See `compact_linear`.
    """
    return _wide_down(weight, blocks, factors), _wide_up(weight, blocks, factors)


def _wide_down(weight: Tensor, blocks: Sequence[BlockIndex], factors: Sequence[Tensor]) -> Tensor:
    """All ``down`` factors at full width, ``[sum r, I]``."""
    downs = factors[::2]
    wide = weight.new_zeros(sum(len(down) for down in downs), weight.shape[1])
    at = 0
    for (_, cols, _), down in zip(blocks, downs, strict=True):
        _write(wide[at : at + len(down)], 1, cols, down)
        at += len(down)
    return wide


def _wide_up(weight: Tensor, blocks: Sequence[BlockIndex], factors: Sequence[Tensor]) -> Tensor:
    """All ``up`` factors at full height, scaled, ``[O, sum r]``."""
    ups = factors[1::2]
    wide = weight.new_zeros(weight.shape[0], sum(up.shape[1] for up in ups))
    at = 0
    for (rows, _, scale), up in zip(blocks, ups, strict=True):
        _write(wide[:, at : at + up.shape[1]], 0, rows, scaled(up, scale))
        at += up.shape[1]
    return wide


def _write(wide: Tensor, dim: int, index: Index, values: Tensor) -> None:
    if isinstance(index, slice):
        wide.narrow(dim, index.start, length_of(index)).copy_(values)
    else:
        wide.index_copy_(dim, index, values)


def _merged(weight: Tensor, blocks: Blocks, factors: Sequence[Tensor]) -> Tensor:
    """The weight with the updates of all its adapters, ``[O, I]``."""
    down, up = wide_factors(weight, blocks, factors)
    return torch.addmm(weight, up, down)


def scaled(factor: Tensor, scale: float) -> Tensor:
    """A tensor times a scale; itself where that is 1."""
    return factor if scale == 1 else factor * scale


def _bias_gradient(ctx: Any, dy: Tensor) -> Tensor | None:
    return dy.sum(0) if ctx.needs_input_grad[2] else None
