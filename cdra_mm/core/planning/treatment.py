"""How a matrix with selected entries is trained: CDRA's block, or what an ablation asks for."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from .compaction import ordered_sides
from .plan import Block, SparseMatrix
from .ranks import dynamic_rank
from .sizes import Rules

__all__ = ['shared_indices', 'treat_matrix']


def treat_matrix(
    name: str, mask: Tensor, num_sensitive: int, rules: Rules, numbers: dict[int, int]
) -> Block | SparseMatrix:
    """The record of one matrix.

    Args:
        name: Its target name.
        mask: Its selected entries, bool ``[O, I]``, at least one.
        num_sensitive: How many they are.
        rules: What the plan follows.
        numbers: See `shared_indices`.

    Returns:
        Its block (Eqs. 4 and 7), of rank 0 where it stays frozen. For an ablation:
        another block, LoRA as a block of all rows and columns, or single entries.
    """
    shape = cast(tuple[int, int], tuple(mask.shape))
    ablation = rules.ablation
    if ablation.is_case2(num_sensitive, shape):
        if not ablation.case2:
            every_row, every_col = (tuple(range(side)) for side in shape)
            rank = ablation.rank_of_lora(shape)
            return Block(name, shape, every_row, every_col, rank, num_sensitive)
    elif not ablation.case1:
        index = torch.nonzero(mask.flatten()).flatten()
        return SparseMatrix(name, shape, tuple(index.tolist()))
    (row_order, num_rows), (col_order, num_cols) = ordered_sides(mask)
    high, wide = ablation.resized(num_rows, shape[0]), ablation.resized(num_cols, shape[1])
    rows, cols = row_order[:high], col_order[:wide]
    inside = num_sensitive if ablation.size_ratio >= 1 else _count(mask, rows, cols)
    rank = _rank(inside, high, wide, shape, rules)
    if ablation.quadrant != '10':
        rows = rows if ablation.quadrant[0] == '1' else row_order[high:]
        cols = cols if ablation.quadrant[1] == '0' else col_order[wide:]
        inside, rank = _count(mask, rows, cols), min(rank, len(rows), len(cols))
    if not rank:  # recorded with all that was lost
        rows, cols, inside = row_order[:num_rows], col_order[:num_cols], num_sensitive
    return Block(
        name, shape, shared_indices(rows, numbers), shared_indices(cols, numbers), rank, inside
    )


def _rank(n: int, rows: int, cols: int, shape: tuple[int, int], rules: Rules) -> int:
    if not n:  # a smaller block can miss every selected entry
        return 0
    return dynamic_rank(n, rows, cols, shape, rule=rules.rank_rule, min_rank=rules.min_rank)


def _count(mask: Tensor, rows: Tensor, cols: Tensor) -> int:
    return int(torch.count_nonzero(mask[rows][:, cols]))


def shared_indices(indices: Tensor, numbers: dict[int, int]) -> tuple[int, ...]:
    """The indices as integers that all records of a plan share.

    A large model's plan holds a million indices below ten thousand: as objects
    of their own they would take four times the memory.
    """
    return tuple(numbers.setdefault(index, index) for index in indices.tolist())
