"""Eq. 7 by trying one rank after the other."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction


def allowed(
    rank: int,
    num_sensitive: int,
    num_rows: int,
    num_cols: int,
    shape: tuple[int, ...],
    rule: str,
    alpha: float = 1,
) -> bool:
    """Whether a rank satisfies the constraint of ``rule``, in exact arithmetic."""
    cost = Fraction(num_rows * rank + num_cols * rank)
    if rule == 'eq7':
        cost *= Fraction(shape[0] * shape[1], num_rows * num_cols)
    return Fraction(Decimal(repr(alpha))) * num_sensitive >= cost


def dynamic_rank(
    num_sensitive: int,
    num_rows: int,
    num_cols: int,
    shape: tuple[int, int],
    *,
    rule: str | int = 'eq7',
    min_rank: int = 0,
    alpha: float = 1,
) -> int:
    """The largest rank that the rule allows, at least ``min_rank``, at most the smaller side."""
    largest = min(num_rows, num_cols)
    block = (num_sensitive, num_rows, num_cols, shape)
    if isinstance(rule, int):
        rank = rule
    else:
        rank = 0
        while rank < largest and allowed(rank + 1, *block, rule, alpha):
            rank += 1
    return min(max(rank, min_rank), largest)
