"""The compact block of a mask (CDRA-SPT, Eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['compact']


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
    if mask.dtype != torch.bool:
        raise TypeError(f'mask is {mask.dtype}: expected torch.bool, True = trainable')
    if mask.dim() != 2:
        raise ValueError(f'mask has shape {tuple(mask.shape)}: expected a matrix [O, I]')
    rows, cols = _most_first(mask.sum(1)), _most_first(mask.sum(0))
    if not len(rows):
        raise ValueError(f'mask of shape {tuple(mask.shape)} selects nothing')
    return rows, cols


def _most_first(counts: Tensor) -> Tensor:
    order = torch.sort(counts, descending=True, stable=True).indices
    return order[: int((counts > 0).sum())]
