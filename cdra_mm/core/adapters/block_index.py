"""Rows and columns of a block, and taking them out of activations."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['BlockIndex', 'Index', 'columns_apart', 'columns_of', 'length_of']

# A run of rows or columns (LoRA's: all of them) is a slice: it is taken without a copy.
Index = Tensor | slice
BlockIndex = tuple[Index, Index, float]  # rows, columns and scale of an adapter


def columns_of(x: Tensor, index: Index) -> Tensor:
    """``x[:, index]``; of a slice a view."""
    if isinstance(index, slice):
        return x[:, index]
    if x.element_size() < 4 and x.device.type == 'cpu':
        # A quarter of the time of `index_select` along the rows; products take it as it lies.
        return x.t().index_select(0, index).t()
    return x.index_select(1, index)


def columns_apart(x: Tensor, index: Index) -> Tensor:
    """``x[:, index]``, to be kept: no view, which would keep all of x."""
    columns = columns_of(x, index)
    if not isinstance(index, slice):
        return columns
    # `contiguous` would give a view where there is one token.
    return columns.clone(memory_format=torch.contiguous_format)


def length_of(index: Index) -> int:
    """How many rows or columns an index takes."""
    return index.stop - index.start if isinstance(index, slice) else len(index)
