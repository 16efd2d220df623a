"""The weighted sum of adapters as an adapter of its own.

    sum_i w_i * scale_i * scatter_{R_i, C_i}(up_i down_i)  =  scatter_{R, C}(UP DOWN)

R and C are the rows and columns of all blocks of a matrix; UP and DOWN their factors side by side,
with zeros where a block does not reach. Where that is of a higher rank than the block can have, one
factor is the sum itself and the other the identity.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cdra_mm.core import Block, Plan, SparseMatrix, Vector
from cdra_mm.errors import ConfigError

from .files import slots_of

__all__ = ['weighted_sum']


class _Part(NamedTuple):
    """What one adapter trains of one target: record, tensors and the adapter's weight."""

    record: Block | Vector | SparseMatrix | int
    tensors: list[Tensor]
    weight: float


def weighted_sum(
    plans: Sequence[Plan], values: Sequence[Sequence[Tensor]], weights: Sequence[float]
) -> tuple[Plan, list[Tensor]]:
    """Plan and values of a weighted sum of adapters.

    Args:
        plans: Their plans.
        values: Their values, as `slots_of` names them.
        weights: A weight for each.

    Returns:
        The plan, and its values likewise.

    Raises:
        ConfigError: If one has a block where another has single entries.
    """
    found: defaultdict[str, list[_Part]] = defaultdict(list)
    for plan, own, weight in zip(plans, values, weights, strict=True):
        by_name: dict[str, Block | Vector | SparseMatrix | int] = {}
        by_name |= {block.name: block for block in plan.blocks}
        by_name |= {vector.name: vector for vector in plan.vectors}
        by_name |= {matrix.name: matrix for matrix in plan.sparse}
        by_name |= plan.also_train
        tensors: defaultdict[str, list[Tensor]] = defaultdict(list)
        for (name, _, _), value in zip(slots_of(plan), own, strict=True):
            tensors[name].append(value)
        for name, record in by_name.items():
            found[name].append(_Part(record, tensors[name], weight))
    blocks, vectors, sparse, whole = [], [], [], {}
    sums: dict[str, list[Tensor]] = {}
    for name, parts in found.items():
        first = parts[0].record
        if len({type(part.record) for part in parts}) > 1:
            raise ConfigError(
                f'{name} is a block in one of the adapters and single entries in another, of which '
                'there is no sum: add up adapters of one method'
            )
        if isinstance(first, Block):
            block, sums[name] = _sum_of_blocks(first, parts)
            blocks.append(block)
        elif isinstance(first, int):
            sums[name] = [_total([part.weight * part.tensors[0] for part in parts])]
            whole[name] = first
        else:
            indices, sums[name] = _sum_of_entries(parts)
            if isinstance(first, Vector):
                vectors.append(replace(first, indices=indices))
            else:
                sparse.append(replace(first, indices=indices))
    plan = Plan(
        method=plans[0].method,
        blocks=tuple(blocks),
        vectors=tuple(vectors),
        sparse=tuple(sparse),
        also_train=whole,
    )
    names = dict.fromkeys(name for name, _, _ in slots_of(plan))
    return plan, [value for name in names for value in sums[name]]


def _sum_of_blocks(first: Block, parts: Sequence[_Part]) -> tuple[Block, list[Tensor]]:
    records = [part.record for part in parts if isinstance(part.record, Block)]
    rows = sorted({index for block in records for index in block.rows})
    cols = sorted({index for block in records for index in block.cols})
    row_at = {index: at for at, index in enumerate(rows)}
    col_at = {index: at for at, index in enumerate(cols)}
    downs, ups = [], []
    for block, part in zip(records, parts, strict=True):
        down, up = part.tensors
        wide_down = down.new_zeros(len(down), len(cols))
        wide_down[:, [col_at[index] for index in block.cols]] = down
        wide_up = up.new_zeros(len(rows), up.shape[1])
        wide_up[[row_at[index] for index in block.rows]] = part.weight * block.scale * up
        downs.append(wide_down)
        ups.append(wide_up)
    down, up = torch.cat(downs), torch.cat(ups, 1)
    most = min(len(rows), len(cols))
    if len(down) > most:
        delta = up.double() @ down.double()
        unit = torch.eye(most, dtype=down.dtype, device=down.device)
        delta = delta.to(down.dtype)
        down, up = (unit, delta) if len(cols) <= len(rows) else (delta, unit)
    block = replace(
        first,
        rows=tuple(rows),
        cols=tuple(cols),
        rank=len(down),
        num_sensitive=max(block.num_sensitive for block in records),
        scale=1.0,
        dropout=0.0,
    )
    return block, [down, up]


def _sum_of_entries(parts: Sequence[_Part]) -> tuple[tuple[int, ...], list[Tensor]]:
    records = [part.record for part in parts if isinstance(part.record, Vector | SparseMatrix)]
    each = [_indices_of(record) for record in records]
    indices = sorted(set().union(*each))
    at = {index: position for position, index in enumerate(indices)}
    total = parts[0].tensors[0].new_zeros(len(indices))
    for own, part in zip(each, parts, strict=True):
        total[[at[index] for index in own]] += part.weight * part.tensors[0]
    return tuple(indices), [total]


def _indices_of(record: Vector | SparseMatrix) -> Sequence[int]:
    if isinstance(record, Vector) and record.indices is None:
        return range(record.length)
    return record.indices or ()


def _total(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum(0)
