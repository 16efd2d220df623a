"""The blocks of one weight as one: q, k and v of a fused layer are gathered together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .block_index import BlockIndex, Index

__all__ = ['VECTOR', 'JointBlocks', 'join_blocks', 'vector_begins']

VECTOR = 8  # entries in half precision that a GPU loads at once


class JointBlocks(NamedTuple):
    """The blocks of one weight, in the full weight's rows and columns.

    Attributes:
        rows: Those of all blocks, one block after another, int64 ``[sum |R|]``; a slice where they
            follow each other.
        cols: Columns likewise, of `width`. On a GPU each block's begin at a multiple of `VECTOR`,
            and there is a multiple of twice that in all: what is in between is taken in vain.
        begins: Where the columns of each block begin there.
        indices: Rows and columns of each block in turn, int64: ``[|R|], [|C|], ...``
        heights: ``|R|`` of each block.
        widths: ``|C|`` of each block.
        scales: Factor of each block's update.
        disjoint: Whether no entry of the weight belongs to two blocks.
        size: Entries of all blocks.
        largest: Entries of the largest block.
        width: How many columns are taken.
    """

    rows: Index
    cols: Index
    begins: tuple[int, ...]
    indices: tuple[Tensor, ...]
    heights: tuple[int, ...]
    widths: tuple[int, ...]
    scales: tuple[float, ...]
    disjoint: bool
    size: int
    largest: int
    width: int

    def moved(self, device: torch.device) -> JointBlocks:
        """The same with every index on a device."""
        rows = self.rows if isinstance(self.rows, slice) else self.rows.to(device)
        indices = tuple(index.to(device) for index in self.indices)
        run = self.cols if isinstance(self.cols, slice) else None
        cols, begins, width = _columns(run, indices[1::2])
        return self._replace(rows=rows, cols=cols, begins=begins, indices=indices, width=width)


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
    taken, begins, width = _columns(_run_of([block[1] for block in blocks]), cols)
    return JointBlocks(
        rows=_run_of([block[0] for block in blocks]) or _in_turn(rows),
        cols=taken,
        begins=begins,
        indices=tuple(indices),
        heights=heights,
        widths=widths,
        scales=tuple(scale for _, _, scale in blocks),
        disjoint=_are_disjoint(rows, cols, size),
        size=sum(sizes),
        largest=max(sizes),
        width=width,
    )


def _columns(run: slice | None, cols: Sequence[Tensor]) -> tuple[Index, tuple[int, ...], int]:
    """The columns of all blocks, where each block's begin, and how many they are."""
    widths = [len(index) for index in cols]
    if run is not None or not _takes_vectors(cols[0].device):
        begins = list(itertools.accumulate(widths, initial=0))
        return run or _in_turn(cols), tuple(begins[:-1]), begins[-1]
    begins = vector_begins(widths)
    ends = zip(cols, begins[1:], begins, strict=False)
    padding = [index[-1:].expand(end - begin - len(index)) for index, end, begin in ends]
    both = zip(cols, padding, strict=True)
    return torch.cat(list(itertools.chain(*both))), tuple(begins[:-1]), begins[-1]


def _takes_vectors(device: torch.device) -> bool:
    return device.type == 'cuda'


def vector_begins(widths: Sequence[int]) -> list[int]:
    """Where columns begin that a GPU takes, and last where they end.

    Example:
        >>> vector_begins([5, 9])
        [0, 8, 32]
    """
    begins = [0]
    for width in widths:
        begins.append(-(-(begins[-1] + width) // VECTOR) * VECTOR)
    begins[-1] = -(-begins[-1] // (2 * VECTOR)) * (2 * VECTOR)
    return begins


def _in_turn(indices: Sequence[Tensor]) -> Tensor:
    return indices[0] if len(indices) == 1 else torch.cat(list(indices))


def _indices(index: Index, device: torch.device) -> Tensor:
    if isinstance(index, slice):
        return torch.arange(index.start, index.stop, device=device)
    return index.to(device)


def _run_of(given: list[Index]) -> slice | None:
    """All in turn, where that is a slice."""
    slices = [index for index in given if isinstance(index, slice)]
    follow = len(slices) == len(given) and all(
        one.stop == other.start for one, other in zip(slices, slices[1:], strict=False)
    )
    return slice(slices[0].start, slices[-1].stop) if follow else None


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
