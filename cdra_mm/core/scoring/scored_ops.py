"""Operations that compute squared per-sample gradients in their backward (Eq. 3).

Legend: B samples, T tokens of one sample, I input width, O output width.

A linear layer ``y = x W^T`` on ``x [B, T, I]`` has the per-sample gradient
``G_b = dY_b^T X_b`` ``[O, I]``, summed over the tokens of sample b. Its square,
summed over b, costs the FLOPs of the ordinary weight gradient (`squares`), and the
weight's own gradient is not computed. Vectors (bias, norm, scale) have
``[B, length]`` per-sample gradients.

Each operation gets an *anchor*, a scalar that requires grad, so that autograd
records it although no weight asks for a gradient and the input may be constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..once_differentiable import once_differentiable
from .square_sink import ALL, Shift, SquareSink

__all__ = ['scored_layer_norm', 'scored_linear', 'scored_scale']


class _ScoredLinear(torch.autograd.Function):
    """``F.linear`` whose backward adds the squared gradients of its own weight."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sink: SquareSink,
        weight_name: str,
        shifts: tuple[Shift, ...],
        rows: slice,
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        # Under autocast the product ran in y's dtype; keeping x in it halves what is saved.
        ctx.save_for_backward(x.to(y.dtype) if weight_name else x.new_empty(0), weight)
        ctx.sink, ctx.name, ctx.shifts = sink, weight_name, shifts
        ctx.rows, ctx.x_dtype = rows, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        sink: SquareSink = ctx.sink
        names = [*([ctx.name] if ctx.name else []), *(shift.name for shift in ctx.shifts)]
        if sink.takes(names, grad):
            grad_bt = sink.per_sample_view(grad, names[0])
            if ctx.name:
                sink.add_matrix(ctx.name, ctx.rows, sink.per_sample_view(x, ctx.name), grad_bt)
            sink.add_shifts(ctx.shifts, grad_bt)
        dx = (grad @ weight.to(grad.dtype)).to(ctx.x_dtype) if ctx.needs_input_grad[1] else None
        return None, dx, None, None, None, None, None, None


class _ScoredLayerNorm(torch.autograd.Function):
    """``F.layer_norm`` whose backward adds the squared gradients of its scale and shift."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        eps: float,
        sink: SquareSink,
        scale_name: str,
        shift_name: str,
    ) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
        # What an ordinary layer norm keeps: x is kept anyway as the residual, its normal form not.
        ctx.save_for_backward(x, mean, rstd, scale, shift)
        ctx.sink, ctx.names = sink, (scale_name, shift_name)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, scale, shift = ctx.saved_tensors
        scale_name, shift_name = ctx.names
        sink: SquareSink = ctx.sink
        names = [name for name in ctx.names if name]
        if sink.takes(names, grad):
            if scale_name:
                # sum_t grad_t (x_t - mean_t) rstd_t: the last factor, one per token, by a product.
                product = sink.per_sample_view((x.float() - mean).mul_(grad), scale_name)
                per_token = rstd.reshape(product.shape[0], 1, -1).to(product.dtype)
                sink.add_vector(scale_name, (per_token @ product).squeeze(1).float())
            grad_bt = sink.per_sample_view(grad, names[0])
            sink.add_shifts((Shift(shift_name),) if shift_name else (), grad_bt)
        dx = None
        if ctx.needs_input_grad[1]:
            only_dx = [True, False, False]
            dx = torch.ops.aten.native_layer_norm_backward(
                grad, x, x.shape[-1:], mean, rstd, scale, shift, only_dx
            )[0]
        return None, dx, None, None, None, None, None, None


class _ScoredScale(torch.autograd.Function):
    """``x * scale`` whose backward adds the squared gradients of the scale."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, x: Tensor, scale: Tensor, sink: SquareSink, name: str
    ) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.sink, ctx.name = sink, name
        return x * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        sink: SquareSink = ctx.sink
        if sink.takes([ctx.name], grad):
            product = sink.per_sample_view(grad * x, ctx.name)
            sink.add_vector(ctx.name, product.sum(1, dtype=torch.float32))
            sink.add_shifts((), sink.per_sample_view(grad, ctx.name))
        dx = (grad * scale).to(x.dtype) if ctx.needs_input_grad[1] else None
        return None, dx, None, None, None


def scored_linear(
    anchor: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sink: SquareSink,
    weight_name: str,
    shifts: tuple[Shift, ...],
    rows: slice = ALL,
) -> Tensor:
    """``F.linear(x, weight, bias)``; its backward scores the named parameters.

    Args:
        anchor: Scalar that requires grad.
        x: Input ``[B, ..., I]``, or windows ``[B * windows, ..., I]``.
        weight: ``[O, I]``.
        bias: ``[O]`` or None.
        sink: Where the squares go.
        weight_name: Key of ``sink.sums`` for the weight, '' not to score it.
        shifts: The scored vectors that ``bias`` consists of, none not to score it.
        rows: Rows of the named weight that ``weight`` is.
    """
    out: Tensor = _ScoredLinear.apply(anchor, x, weight, bias, sink, weight_name, shifts, rows)
    return out


def scored_layer_norm(
    anchor: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    sink: SquareSink,
    scale_name: str,
    shift_name: str,
) -> Tensor:
    """``F.layer_norm`` over the last dimension; its backward scores the named vectors."""
    # In one type, as autocast has it on a GPU: a kernel there takes no mixture.
    for vector in (scale, shift):
        x = x if vector is None else x.to(torch.promote_types(x.dtype, vector.dtype))
    out: Tensor = _ScoredLayerNorm.apply(anchor, x, scale, shift, eps, sink, scale_name, shift_name)
    return out


def scored_scale(anchor: Tensor, x: Tensor, scale: Tensor, sink: SquareSink, name: str) -> Tensor:
    """``x * scale`` over the last dimension; its backward scores the scale."""
    out: Tensor = _ScoredScale.apply(anchor, x, scale, sink, name)
    return out
