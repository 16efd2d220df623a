"""The forward and backward of a linear layer with compact adapters.

    y = x W^T + b + sum_i scale_i * scatter_{R_i}( up_i down_i x[C_i] )

Legend: T tokens (all leading dimensions), I in, O out, r rank, i adapters.

The small factors are padded to full width once per call instead of gathering
wide activations: ``DOWN [sum r, I]`` and ``UP [O, sum r]``, so that all adapters
of a fused layer share one skinny product. For the backward only the selected
columns ``x[C_i]`` are kept (LoRA keeps all of x):

    dx      = dy W + (dy UP) DOWN
    ddown_i = (dy UP_i)^T x[C_i]                [r, |C|]
    dup_i   = (dy^T (x[C_i] down_i^T))[R_i]     [|R|, r]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ['compact_linear']

Blocks = Sequence[tuple[Tensor, Tensor, float]]  # (rows, cols, scale) of each adapter


def compact_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, blocks: Blocks, factors: Sequence[Tensor]
) -> Tensor:
    """``F.linear`` with the weight's compact adapters (CDRA-SPT, Eq. 6).

    Args:
        x: ``[..., I]``.
        weight: Base weight ``[O, I]``; it gets no gradient.
        bias: ``[O]`` or None.
        blocks: Rows, columns and scale of each adapter, in the full weight.
        factors: ``down [r, |C|], up [|R|, r]`` of each adapter in turn.

    Returns:
        ``[..., O]``. Under autocast in the autocast type, as ``F.linear``.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            bias = None if bias is None else bias.to(dtype)
            factors = [factor.to(dtype) for factor in factors]
            return _apply(x.to(dtype), weight.to(dtype), bias, blocks, factors)
    return _apply(x, weight, bias, blocks, [factor.to(x.dtype) for factor in factors])


def _apply(
    x: Tensor, weight: Tensor, bias: Tensor | None, blocks: Blocks, factors: Sequence[Tensor]
) -> Tensor:
    out: Tensor = _CompactLinear.apply(x, weight, bias, tuple(blocks), *factors)
    return out


class _CompactLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, blocks: Blocks, *factors: Tensor
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        downs, ups = factors[::2], factors[1::2]
        y = F.linear(flat, weight, bias)
        y.addmm_(flat @ _pad_down(weight, blocks, downs).t(), _pad_up(weight, blocks, ups).t())
        # Selected columns only, unless together they are wider than x itself.
        keep_all = sum(len(cols) for _, cols, _ in blocks) >= flat.shape[1]
        kept = [flat] if keep_all else [flat.index_select(1, cols) for _, cols, _ in blocks]
        ctx.save_for_backward(weight, *factors, *kept)
        ctx.blocks, ctx.shape, ctx.keep_all = blocks, x.shape, keep_all
        return y.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        blocks: Blocks = ctx.blocks
        weight, *saved = ctx.saved_tensors
        factors, kept = saved[: 2 * len(blocks)], saved[2 * len(blocks) :]
        downs, ups = factors[::2], factors[1::2]
        dy = grad.reshape(-1, grad.shape[-1])
        dh = dy @ _pad_up(weight, blocks, ups)  # [T, sum r]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(dh, _pad_down(weight, blocks, downs)).reshape(ctx.shape)
        d_bias = dy.sum(0) if ctx.needs_input_grad[2] else None

        if ctx.keep_all:
            columns = [kept[0].index_select(1, cols) for _, cols, _ in blocks]
        else:
            columns = kept
        hidden = [x_c @ down.t() for x_c, down in zip(columns, downs, strict=True)]
        d_full = dy.t() @ torch.cat(hidden, 1)  # [O, sum r]
        grads: list[Tensor] = []
        at = 0
        for (rows, _, scale), down, x_c in zip(blocks, downs, columns, strict=True):
            ranks = slice(at, at + down.shape[0])
            grads += [dh[:, ranks].t() @ x_c, d_full[rows, ranks] * scale]
            at = ranks.stop
        return dx, None, d_bias, None, *grads


def _pad_down(weight: Tensor, blocks: Blocks, downs: Sequence[Tensor]) -> Tensor:
    """All ``down`` factors at full width, ``[sum r, I]``."""
    padded = weight.new_zeros(sum(len(down) for down in downs), weight.shape[1])
    at = 0
    for (_, cols, _), down in zip(blocks, downs, strict=True):
        padded[at : at + len(down)].index_copy_(1, cols, down)
        at += len(down)
    return padded


def _pad_up(weight: Tensor, blocks: Blocks, ups: Sequence[Tensor]) -> Tensor:
    """All ``up`` factors at full height, scaled, ``[O, sum r]``."""
    padded = weight.new_zeros(weight.shape[0], sum(up.shape[1] for up in ups))
    at = 0
    for (rows, _, scale), up in zip(blocks, ups, strict=True):
        padded[:, at : at + up.shape[1]].index_copy_(0, rows, up * scale)
        at += up.shape[1]
    return padded
