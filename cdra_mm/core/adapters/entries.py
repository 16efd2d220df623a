"""Single trained entries of a weight, as compact values.

    W'.flat[index] = W.flat[index] + value

Of a vector: SPT's rule for sparse vectors (design D9). Of a matrix: SPT's
unstructured tuning and GPS. No gradient of the whole matrix is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.targets import Target
from ..once_differentiable import once_differentiable
from .adapter import ParameterAdapter, register_kind
from .compact_linear import autocast_type
from .low_rank import check_index, master_dtype

__all__ = ['Entries', 'EntryPlaces', 'entries_linear', 'pass_entries_gradient', 'place_entries']

# Products of single entries are summed over the tokens in pieces of this many numbers.
SCRATCH_NUMBERS = 2**22


@register_kind
class Entries(ParameterAdapter):
    """Single trained entries of a vector or a matrix.

    Args:
        target: The vector or matrix.
        like: Its parameter, which gives device and floating type of the values.
        index: Trained entries, positions in the flattened target, int64 ``[n]``.
    """

    kind = 'entries'
    trains_entries = True

    index: Tensor

    def __init__(self, target: Target, like: Tensor, index: Tensor) -> None:
        super().__init__(target.parameter)
        check_index(index, target.numel, 'index')
        self.offset = target.start * (target.shape[1] if len(target.shape) == 2 else 1)
        self.register_buffer('index', index.to(like.device), persistent=False)  # the plan has it
        self.value = nn.Parameter(
            torch.zeros(len(index), device=like.device, dtype=master_dtype(like))
        )

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """All zero: the entries start at their base values."""
        self.value.zero_()

    @property
    def flat(self) -> Tensor:
        """Positions in the flattened parameter, ``[n]``."""
        return self.index + self.offset if self.offset else self.index

    def added_to(self, base: Tensor) -> Tensor:
        """See `ParameterAdapter.added_to`."""
        added = base.reshape(-1).index_add(0, self.flat, self.value.to(base.dtype))
        return added.view(base.shape)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f'{self.parameter}, entries={len(self.index)}'


class EntryPlaces(NamedTuple):
    """Where single entries of a matrix lie.

    Attributes:
        flat: Their positions in the flattened matrix, int64 ``[n]``.
        rows: Rows that have any, ``[R]``.
        cols: Columns that have any, ``[C]``.
        at_row: Which of `rows` is that of each entry, ``[n]``.
        at_col: Which of `cols`, ``[n]``.
    """

    flat: Tensor
    rows: Tensor
    cols: Tensor
    at_row: Tensor
    at_col: Tensor


def place_entries(indices: Sequence[Tensor], width: int) -> EntryPlaces:
    """Where entries lie; a GPU is waited for.

    Args:
        indices: Their positions in the flattened matrix, some at a time, int64.
        width: Columns of the matrix.
    """
    flat = torch.cat(list(indices))
    rows, at_row = torch.unique(flat // width, return_inverse=True)
    cols, at_col = torch.unique(flat % width, return_inverse=True)
    return EntryPlaces(flat, rows, cols, at_row, at_col)


def entries_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, places: EntryPlaces, value: Tensor
) -> Tensor:
    """``F.linear`` with single trained entries of the weight.

    Args:
        x: ``[..., I]``.
        weight: Base weight ``[O, I]``; it gets no gradient.
        bias: ``[O]`` or None.
        places: Where the entries lie.
        value: What is added there, ``[n]``.

    Returns:
        ``[..., O]``. Under autocast in the autocast type, as ``F.linear``.
    """
    dtype = autocast_type(x)
    if dtype is not None:
        with torch.autocast(x.device.type, enabled=False):
            bias = None if bias is None else bias.to(dtype)
            return _apply(x.to(dtype), weight, bias, places, value)
    return _apply(x, weight, bias, places, value)


def _apply(
    x: Tensor, weight: Tensor, bias: Tensor | None, places: EntryPlaces, value: Tensor
) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    y: Tensor = _EntriesLinear.apply(flat, weight, bias, value, *places)
    return y.reshape(*x.shape[:-1], weight.shape[0])


class _EntriesLinear(torch.autograd.Function):
    """Added in the values' precision, then rounded to the input's: no value is lost before."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, value: Tensor, *given: Tensor
    ) -> Tensor:
        places = EntryPlaces(*given)
        ctx.save_for_backward(weight, value, x.index_select(1, places.cols), *places)
        return F.linear(x, _with_entries(weight, places.flat, value).to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, value, x_c, *given = ctx.saved_tensors
        places = EntryPlaces(*given)
        dx = d_value = None
        if ctx.needs_input_grad[0]:
            dx = dy @ _with_entries(weight, places.flat, value).to(dy.dtype)
        if ctx.needs_input_grad[3]:
            d_value = _value_gradient(dy, x_c, places).to(value.dtype)
        bias = dy.sum(0) if ctx.needs_input_grad[2] else None
        return dx, None, bias, d_value, *[None] * len(given)


def pass_entries_gradient(y: Tensor, x: Tensor, places: EntryPlaces, value: Tensor) -> Tensor:
    """``y`` itself, with the gradient of entries that its weight holds already.

    Args:
        y: ``F.linear(x, W')`` by other means, without a gradient of the entries. ``[..., O]``.
        x: ``[..., I]``; gets no gradient here.
        places: Where the entries lie in the weight ``[O, I]``.
        value: The entries, ``[n]``.
    """
    out: Tensor = _EntriesGradient.apply(y, x.detach(), value, *places)
    return out


class _EntriesGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, value: Tensor, *given: Tensor) -> Tensor:
        places = EntryPlaces(*given)
        x_c = x.reshape(-1, x.shape[-1]).index_select(1, places.cols).to(y.dtype)
        ctx.save_for_backward(x_c, *places)
        ctx.dtype = value.dtype
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_c, *given = ctx.saved_tensors
        d_value = _value_gradient(dy.reshape(-1, dy.shape[-1]), x_c, EntryPlaces(*given))
        return dy, None, d_value.to(ctx.dtype), *[None] * len(given)


def _with_entries(weight: Tensor, index: Tensor, value: Tensor) -> Tensor:
    wide = weight.to(torch.promote_types(weight.dtype, value.dtype))
    return wide.reshape(-1).index_add(0, index, value.to(wide.dtype)).view(weight.shape)


def _value_gradient(dy: Tensor, x_c: Tensor, places: EntryPlaces) -> Tensor:
    """``sum_t dy[t, row] * x[t, col]`` of each entry: through the block where it is small. ``[n]``.

    Args:
        dy: ``[T, O]``.
        x_c: The input's columns that have entries, ``[T, C]``.
        places: Where the entries lie.
    """
    _, rows, _, at_row, at_col = places
    # A product of the whole block runs at many times the speed of gathered single products.
    if len(rows) * x_c.shape[1] <= 64 * len(at_row):
        block = dy.index_select(1, rows).t() @ x_c
        return block[at_row, at_col]
    step = max(1, SCRATCH_NUMBERS // max(1, len(dy)))
    pieces = zip(torch.split(rows[at_row], step), torch.split(at_col, step), strict=True)
    return torch.cat([(dy[:, r] * x_c[:, c]).sum(0, dtype=torch.float32) for r, c in pieces])
