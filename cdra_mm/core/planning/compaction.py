"""The compact block of a mask (CDRA-SPT, Eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['compact', 'ordered_sides']

CHUNK = 1 << 18  # entries counted at a time: torch sums bools through a wider copy of them


def compact(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of a weight that hold a selected entry (Eq. 4).

    With ``R = {i : sum_j M_ij > 0}`` and ``C = {j : sum_i M_ij > 0}`` every
    selected entry lies in the block ``W[R][:, C]``.

    Args:
        mask: Selected entries, ``True`` = trainable. Bool, ``[O, I]``.

    Returns:
        Row ``[R]`` and column ``[C]`` indices, int64, on the mask's device,
        most selected entries first, ties by index.

    Raises:
        TypeError: If ``mask`` is not bool (a float mask hides its polarity).
        ValueError: If ``mask`` is not a matrix or selects nothing.

    Example:
        >>> rows, cols = compact(torch.tensor([[0, 1], [0, 0], [1, 1]]).bool())
        >>> rows.tolist(), cols.tolist()
        ([2, 0], [1, 0])
    """
    (rows, num_rows), (cols, num_cols) = ordered_sides(mask)
    return rows[:num_rows], cols[:num_cols]


def ordered_sides(mask: Tensor) -> tuple[tuple[Tensor, int], tuple[Tensor, int]]:
    """All rows and columns in their new order (Eq. 4), and how many of them `compact` takes.

    Returns:
        Rows, int64 ``[O]``, with ``|R|``, and columns ``[I]`` with ``|C|``; those that hold
        nothing come last, by index.

    Raises:
        TypeError: See `compact`.
        ValueError: See `compact`.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f'mask is {mask.dtype}: expected torch.bool, True = trainable')
    if mask.dim() != 2:
        raise ValueError(f'mask has shape {tuple(mask.shape)}: expected a matrix [O, I]')
    in_rows, in_cols = _counts(mask)
    rows, cols = _most_first(in_rows), _most_first(in_cols)
    if not rows[1]:
        raise ValueError(f'mask of shape {tuple(mask.shape)} selects nothing')
    return rows, cols


def _counts(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Selected entries of each row ``[O]`` and of each column ``[I]``, int32."""
    # Made once: small tensors kept between the scratch of two chunks scatter the heap.
    in_rows, in_cols = (
        torch.zeros(side, dtype=torch.int32, device=mask.device) for side in mask.shape
    )
    step = max(1, CHUNK // max(1, mask.shape[1]))
    for part, out in zip(torch.split(mask, step), torch.split(in_rows, step), strict=True):
        ones = part.to(torch.int32)
        out += ones.sum(1, dtype=torch.int32)
        in_cols += ones.sum(0, dtype=torch.int32)
    return in_rows, in_cols


def _most_first(counts: Tensor) -> tuple[Tensor, int]:
    order = torch.sort(counts, descending=True, stable=True).indices
    return order, int((counts > 0).sum())
