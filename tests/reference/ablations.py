"""The ablations of Tables 5, 6 and 7 by loops over lists, and the best plan within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from torch import Tensor

from .planning import thresholds, vector_sizes
from .ranks import dynamic_rank
from .selection import top_k

Record = tuple[str, list[int], list[int], int]
"""'entries', or 'block' with rows, columns and rank."""


def treat(
    mask: Tensor,
    *,
    rule='eq7',
    min_rank=0,
    case1=True,
    case2=True,
    alpha=10,
    lora_rank=8,
    size_ratio=1,
    quadrant='10',
    rank_alpha=1,
) -> Record:
    """How one matrix with a selected entry is trained."""
    table = mask.tolist()
    height, width = len(table), len(table[0])
    number = sum(map(sum, table))
    lora = min(lora_rank, height, width)
    if Fraction(number) * Fraction(alpha) < lora * (height + width):
        if not case1:
            return 'entries', [i for i, x in enumerate(mask.flatten().tolist()) if x], [], 0
    elif not case2:
        return 'block', list(range(height)), list(range(width)), lora
    in_row = [sum(row) for row in table]
    in_col = [sum(row[j] for row in table) for j in range(width)]
    rows = sorted(range(height), key=lambda i: (-in_row[i], i))
    cols = sorted(range(width), key=lambda j: (-in_col[j], j))
    high = side(sum(x > 0 for x in in_row), height, size_ratio)
    wide = side(sum(x > 0 for x in in_col), width, size_ratio)
    inside = sum(table[i][j] for i in rows[:high] for j in cols[:wide])
    rank = 0
    if inside:
        how = dict(rule=rule, min_rank=min_rank, alpha=rank_alpha)
        rank = dynamic_rank(inside, high, wide, (height, width), **how)
    rows = rows[:high] if quadrant in ('10', '11') else rows[high:]
    cols = cols[:wide] if quadrant in ('10', '00') else cols[wide:]
    return 'block', rows, cols, min(rank, len(rows), len(cols))


def side(touched: int, whole: int, ratio: float) -> int:
    """The nearest integer to ``ratio * touched``, halves up, from 1 to ``whole``."""
    wanted = Fraction(ratio) * touched
    candidates = range(1, whole + 1)
    return min(candidates, key=lambda size: (abs(wanted - size), -size))


def size(masks: Mapping[str, Tensor], beta: float = 5, **rules) -> tuple[int, int]:
    """Parameters of the plan of these masks, and how many matrices it adapts."""
    total = adapted = 0
    for mask in masks.values():
        if mask.dim() == 2 and mask.any():
            kind, rows, cols, rank = treat(mask, **rules)
            params = len(rows) if kind == 'entries' else rank * (len(rows) + len(cols))
            total, adapted = total + params, adapted + (params > 0)
    for name, chosen in vector_sizes(masks, beta).items():
        total += len(masks[name]) if chosen is None else len(chosen)
    return total, adapted


def sizes(scores: Mapping[str, Tensor], **rules) -> list[tuple[int, int]]:
    """`size` of the plan of every threshold, fewest entries first."""
    return [size(top_k(scores, count), **rules) for count in thresholds(scores)]


def within_budget(sizes: list[tuple[int, int]], budget: int) -> int | None:
    """Most parameters within a budget of a plan that adapts a matrix; ``None`` where none fits."""
    return max((size for size, adapted in sizes if adapted and size <= budget), default=None)
