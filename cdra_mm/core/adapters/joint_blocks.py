"""The blocks of one weight as one: q, k and v of a fused layer are gathered together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .block_index import BlockIndex, Index

__all__ = ['JointBlocks', 'join_blocks']


class JointBlocks(NamedTuple):
    """The blocks of one weight, in the full weight's rows and columns.

    Attributes:
        rows: Those of all blocks, one block after another, int64 ``[sum |R|]``; a slice where they
            follow each other.
        cols: Columns likewise, ``[sum |C|]``.
        indices: Rows and columns of each block in turn, int64: ``[|R|], [|C|], ...``
        heights: ``|R|`` of each block.
        widths: ``|C|`` of each block.
        scales: Factor of each block's update.
        disjoint: Whether no entry of the weight belongs to two blocks.
        places: Where each block begins in the product of all rows and all columns, ``[sum |R|,
            sum |C|]``, and how far its rows are apart there: ``begin, stride, ...``
        places_apart: The same where the blocks lie one after another.
        size: Entries of all blocks.
        largest: Entries of the largest block.
        width: Columns of all blocks.
    """

    rows: Index
    cols: Index
    indices: tuple[Tensor, ...]
    heights: tuple[int, ...]
    widths: tuple[int, ...]
    scales: tuple[float, ...]
    disjoint: bool
    places: tuple[int, ...]
    places_apart: tuple[int, ...]
    size: int
    largest: int
    width: int

    def moved(self, device: torch.device) -> JointBlocks:
        """The same with every index on a device."""
        rows, cols = (i if isinstance(i, slice) else i.to(device) for i in (self.rows, self.cols))
        indices = tuple(index.to(device) for index in self.indices)
        return self._replace(rows=rows, cols=cols, indices=indices)


def join_blocks(
    blocks: Sequence[BlockIndex], device: torch.device, size: tuple[int, int]
) -> JointBlocks:
    """The blocks of a weight as one.

    Args:
        blocks: At least one; see `compact_linear.compact_linear`.
        device: Where the indices go.
        size: ``(O, I)`` of the weight.
    """
    indices = [_indices(index, device) for rows, cols, _ in blocks for index in (rows, cols)]
    rows, cols = indices[::2], indices[1::2]
    heights, widths = tuple(map(len, rows)), tuple(map(len, cols))
    sizes = [h * w for h, w in zip(heights, widths, strict=True)]
    return JointBlocks(
        rows=_together([block[0] for block in blocks], rows),
        cols=_together([block[1] for block in blocks], cols),
        indices=tuple(indices),
        heights=heights,
        widths=widths,
        scales=tuple(scale for _, _, scale in blocks),
        disjoint=_are_disjoint(rows, cols, size),
        places=tuple(_places(heights, widths)),
        places_apart=tuple(_places_apart(heights, widths)),
        size=sum(sizes),
        largest=max(sizes),
        width=sum(widths),
    )


def _places(heights: Sequence[int], widths: Sequence[int]) -> Iterator[int]:
    above = itertools.accumulate(heights, initial=0)
    left = itertools.accumulate(widths, initial=0)
    for first, column, _ in zip(above, left, heights, strict=False):
        yield from (first * sum(widths) + column, sum(widths))


def _places_apart(heights: Sequence[int], widths: Sequence[int]) -> Iterator[int]:
    begin = 0
    for height, width in zip(heights, widths, strict=True):
        yield from (begin, width)
        begin += height * width


def _indices(index: Index, device: torch.device) -> Tensor:
    if isinstance(index, slice):
        return torch.arange(index.start, index.stop, device=device)
    return index.to(device)


def _together(given: list[Index], indices: list[Tensor]) -> Index:
    """All in turn; a slice where that is one."""
    if len(given) == 1:
        return given[0] if isinstance(given[0], slice) else indices[0]
    slices = [index for index in given if isinstance(index, slice)]
    follow = len(slices) == len(given) and all(
        one.stop == other.start for one, other in zip(slices, slices[1:], strict=False)
    )
    return slice(slices[0].start, slices[-1].stop) if follow else torch.cat(indices)


def _are_disjoint(rows: list[Tensor], cols: list[Tensor], size: tuple[int, int]) -> bool:
    if len(rows) == 1:
        return True
    taken = torch.zeros(size, dtype=torch.bool, device='cpu')
    for r, c in zip(rows, cols, strict=True):
        index = r.cpu()[:, None], c.cpu()[None, :]
        if bool(taken[index].any()):
            return False
        taken[index] = True
    return True
