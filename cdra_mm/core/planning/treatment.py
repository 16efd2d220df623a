"""How a target with selected entries is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

from cdra_mm.errors import PlanError

from .cases import are_many
from .compaction import ordered_sides
from .plan import Block, SparseMatrix, Vector
from .ranks import dynamic_rank
from .rules import Rules

__all__ = ['single_entries', 'treat_all', 'treat_matrix']


def treat_all(
    masks: Iterable[tuple[str, Tensor]],
    beta: float,
    treat: Callable[[str, Tensor, int, dict[int, int]], Block | SparseMatrix | None],
) -> dict[str, Any]:
    """What a plan holds of the selected entries, a target at a time.

    Args:
        masks: Target names with masks, True = selected: matrices and vectors. Those without a
            selected entry are left out.
        beta: See `make_plan`.
        treat: The record of a matrix for its name, mask, selected entries and the integers of
            `shared_indices`, as `treat_matrix` gives it; None if it is noted elsewhere.

    Returns:
        Arguments of `Plan`: blocks, dropped, sparse, vectors, and the two counts.

    Raises:
        PlanError: If a mask is not bool or neither a matrix nor a vector.
    """
    records: list[Block | SparseMatrix | Vector | None] = []
    num_competing = num_sensitive = 0
    numbers: dict[int, int] = {}
    for name, mask in masks:
        if mask.dtype != torch.bool or mask.dim() not in (1, 2):
            raise PlanError(
                f'{name}: the mask is {mask.dtype} {tuple(mask.shape)}: expected torch.bool, a '
                'matrix or a vector'
            )
        count = int(torch.count_nonzero(mask))
        num_competing += mask.numel()
        num_sensitive += count
        if count and mask.dim() == 1:
            whole = are_many(count, len(mask), beta)
            indices = None if whole else shared_indices(torch.nonzero(mask).flatten(), numbers)
            records.append(Vector(name, len(mask), indices, count))
        elif count:
            records.append(treat(name, mask, count, numbers))
    blocks = [record for record in records if isinstance(record, Block)]
    return {
        'blocks': tuple(block for block in blocks if block.rank),
        'dropped': tuple(block for block in blocks if not block.rank),
        'sparse': tuple(record for record in records if isinstance(record, SparseMatrix)),
        'vectors': tuple(record for record in records if isinstance(record, Vector)),
        'num_competing': num_competing,
        'num_sensitive': num_sensitive,
    }


def treat_matrix(
    rules: Rules, name: str, mask: Tensor, num_sensitive: int, numbers: dict[int, int]
) -> Block | SparseMatrix:
    """The record of one matrix.

    Args:
        rules: What the plan follows.
        name: Its target name.
        mask: Its selected entries, bool ``[O, I]``, at least one.
        num_sensitive: How many they are.
        numbers: See `shared_indices`.

    Returns:
        Its block (Eqs. 4 and 7), of rank 0 where it stays frozen. For an ablation:
        another block, LoRA as a block of all rows and columns, or single entries.
    """
    shape = cast(tuple[int, int], tuple(mask.shape))
    ablation = rules.ablation
    if are_many(num_sensitive, ablation.lora_params(shape), ablation.alpha):
        if not ablation.case2:
            every_row, every_col = (tuple(range(side)) for side in shape)
            rank = ablation.rank_of_lora(shape)
            return Block(name, shape, every_row, every_col, rank, num_sensitive)
    elif not ablation.case1:
        return single_entries(name, mask)
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


def single_entries(name: str, mask: Tensor) -> SparseMatrix:
    """The record of a matrix of which the selected entries alone are trained."""
    index = torch.nonzero(mask.flatten()).flatten()
    return SparseMatrix(name, (mask.shape[0], mask.shape[1]), tuple(index.tolist()))


def _rank(n: int, rows: int, cols: int, shape: tuple[int, int], rules: Rules) -> int:
    if not n:  # a smaller block can miss every selected entry
        return 0
    rule, least, alpha = rules.rank_rule, rules.min_rank, rules.rank_alpha
    return dynamic_rank(n, rows, cols, shape, rule=rule, min_rank=least, alpha=alpha)


def _count(mask: Tensor, rows: Tensor, cols: Tensor) -> int:
    return int(torch.count_nonzero(mask[rows][:, cols]))


def shared_indices(indices: Tensor, numbers: dict[int, int]) -> tuple[int, ...]:
    """The indices as integers that all records of a plan share.

    A large model's plan holds a million indices below ten thousand: as objects
    of their own they would take four times the memory.
    """
    return tuple(numbers.setdefault(index, index) for index in indices.tolist())
