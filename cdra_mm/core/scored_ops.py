"""Operations that compute squared per-sample gradients in their backward (Eq. 3).

Legend: B samples, T tokens of one sample, I input width, O output width.

A linear layer ``y = x W^T`` on ``x [B, T, I]`` has the per-sample gradient
``G_b = dY_b^T X_b`` ``[O, I]``, summed over the tokens of sample b. Its square,
summed over b, costs the FLOPs of the ordinary weight gradient; only one ``G_b``
is ever held (``[O, I]``, the scratch), and the weight's own gradient is not
computed. Vectors (bias, norm, scale) have ``[B, length]`` per-sample gradients.

Each operation gets an *anchor*, a scalar that requires grad, so that autograd
records it although no weight asks for a gradient and the input may be constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import ScoreError

__all__ = ['SquareSink', 'scored_linear', 'scored_scale_shift']


class SquareSink:
    """Sums ``statistic`` over batches, one fp32 tensor per parameter.

    ``per_sample`` adds ``sum_b (dL_b/dW)^2``; ``per_batch`` adds
    ``(1/B sum_b dL_b/dW)^2``, which is what SPT's released code does.

    Attributes:
        batch_size: B of the batch in flight; set before its backward.
        finite: Per sample, whether all its output gradients were finite so far.
    """

    def __init__(self, per_sample: bool) -> None:
        self.per_sample = per_sample
        self.batch_size = 0
        self.finite: Tensor | None = None
        self.sums: dict[str, Tensor] = {}
        self._scratch: dict[tuple[int, int, torch.device], Tensor] = {}

    def add_matrix(self, name: str, rows: slice, x: Tensor, grad: Tensor) -> None:
        """Adds the squares of ``dY_b^T X_b``; x ``[B, T, I]``, grad ``[B, T, O]``."""
        total = self.sums[name][rows]
        if not self.per_sample:
            mean = self._product(grad.flatten(0, 1), x.flatten(0, 1)).div_(self.batch_size)
            total.addcmul_(mean, mean)
            return
        for x_b, grad_b in zip(x, grad, strict=True):
            product = self._product(grad_b, x_b)
            total.addcmul_(product, product)

    def add_vector(self, name: str, rows: slice, grads: Tensor) -> None:
        """Adds the squares of per-sample gradients, fp32 ``[B, length]``."""
        if self.per_sample:
            self.sums[name][rows].add_(grads.square().sum(0))
        else:
            self.sums[name][rows].add_(grads.mean(0).square_())

    def per_sample_view(self, tensor: Tensor, name: str) -> Tensor:
        """``[B, ..., n]`` or windows ``[B * windows, ..., n]`` as ``[B, T, n]``."""
        if tensor.dim() < 2 or tensor.shape[0] % self.batch_size:
            raise ScoreError(
                f'{name} is used on an input of shape {(*tensor.shape[:-1], "...")} in a batch of '
                f'{self.batch_size}: its first dimension must be the sample; leave this weight out '
                'of `targets`'
            )
        return tensor.reshape(self.batch_size, -1, tensor.shape[-1])

    def _product(self, grad: Tensor, x: Tensor) -> Tensor:
        """``grad^T x`` in fp32, into one scratch per shape. ``[O, I]``."""
        key = (grad.shape[-1], x.shape[-1], x.device)
        if key not in self._scratch:
            self._scratch[key] = torch.empty(key[:2], dtype=torch.float32, device=x.device)
        return torch.mm(grad.float().t(), x.float(), out=self._scratch[key])

    def note_finite(self, summed: Tensor) -> None:
        """Notes which samples have a finite output gradient, summed over tokens ``[B, O]``."""
        # A sum is NaN or infinite where a term is; reading it is cheaper than reading the terms.
        finite = torch.isfinite(summed.sum(1))
        self.finite = finite if self.finite is None else self.finite & finite


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
        bias_name: str,
        rows: slice,
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        # Under autocast the product ran in y's dtype; keeping x in it halves what is saved.
        ctx.save_for_backward(x.to(y.dtype) if weight_name else x.new_empty(0), weight)
        ctx.sink, ctx.names, ctx.rows, ctx.x_dtype = sink, (weight_name, bias_name), rows, x.dtype
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        weight_name, bias_name = ctx.names
        sink: SquareSink = ctx.sink
        name = weight_name or bias_name
        grad_bt = sink.per_sample_view(grad, name)
        if weight_name:
            sink.add_matrix(weight_name, ctx.rows, sink.per_sample_view(x, name), grad_bt)
        summed = grad_bt.sum(1, dtype=torch.float32)
        sink.note_finite(summed)
        if bias_name:
            sink.add_vector(bias_name, ctx.rows, summed)
        dx = (grad @ weight.to(grad.dtype)).to(ctx.x_dtype) if ctx.needs_input_grad[1] else None
        return None, dx, None, None, None, None, None, None


class _ScoredScaleShift(torch.autograd.Function):
    """``x * scale + shift`` whose backward adds the squared gradients of both."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        sink: SquareSink,
        scale_name: str,
        shift_name: str,
    ) -> Tensor:
        y = x.clone() if scale is None else x * scale
        if shift is not None:
            y = y + shift
        ctx.save_for_backward(x if scale_name else None, scale)
        ctx.sink, ctx.names, ctx.x_dtype = sink, (scale_name, shift_name), x.dtype
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        scale_name, shift_name = ctx.names
        sink: SquareSink = ctx.sink
        name = scale_name or shift_name
        if scale_name:
            product = sink.per_sample_view(grad * x, name)
            sink.add_vector(scale_name, slice(None), product.sum(1, dtype=torch.float32))
        summed = sink.per_sample_view(grad, name).sum(1, dtype=torch.float32)
        sink.note_finite(summed)
        if shift_name:
            sink.add_vector(shift_name, slice(None), summed)
        dx = None
        if ctx.needs_input_grad[1]:
            dx = (grad if scale is None else grad * scale).to(ctx.x_dtype)
        return None, dx, None, None, None, None, None


def scored_linear(
    anchor: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sink: SquareSink,
    weight_name: str,
    bias_name: str,
    rows: slice = slice(None),
) -> Tensor:
    """``F.linear(x, weight, bias)``; its backward scores the named parameters.

    Args:
        anchor: Scalar that requires grad.
        x: Input ``[B, ..., I]``, or windows ``[B * windows, ..., I]``.
        weight: ``[O, I]``.
        bias: ``[O]`` or None.
        sink: Where the squares go.
        weight_name: Key of ``sink.sums`` for the weight, '' not to score it.
        bias_name: Likewise for the bias.
        rows: Rows of the named parameters that ``weight`` and ``bias`` are.
    """
    out: Tensor = _ScoredLinear.apply(anchor, x, weight, bias, sink, weight_name, bias_name, rows)
    return out


def scored_scale_shift(
    anchor: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    sink: SquareSink,
    scale_name: str,
    shift_name: str,
) -> Tensor:
    """``x * scale + shift`` over the last dimension; its backward scores the named vectors."""
    out: Tensor = _ScoredScaleShift.apply(anchor, x, scale, shift, sink, scale_name, shift_name)
    return out
