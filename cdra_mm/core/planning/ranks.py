"""The dynamic rank of a compact block (CDRA-SPT, Eq. 7)."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from cdra_mm.errors import PlanError

__all__ = ['RANK_RULES', 'check_rank_rule', 'dynamic_rank', 'unbounded_rank']

RANK_RULES = ('eq7', 'count')
Count = TypeVar('Count', int, Tensor)


def dynamic_rank(
    num_sensitive: int,
    num_rows: int,
    num_cols: int,
    shape: tuple[int, int],
    *,
    rule: str | int = 'eq7',
    min_rank: int = 0,
) -> int:
    """The largest rank that trains no more than the selected entries warrant (Eq. 7).

    With n selected entries in a block ``|R| x |C|`` of a weight ``[O, I]``:

    - ``'eq7'``: ``max r  s.t.  n >= r (|R|+|C|) * (O I) / (|R||C|)``.
    - ``'count'``: ``max r  s.t.  n >= r (|R|+|C|)``, without the area factor.
    - an integer: that rank for every block (the paper's Table 4).

    Args:
        num_sensitive: n.
        num_rows: ``|R|``.
        num_cols: ``|C|``.
        shape: ``(O, I)``.
        rule: ``'eq7'``, ``'count'`` or a fixed rank.
        min_rank: Rank of a block whose rule gives less.

    Returns:
        The rank, at most ``min(|R|, |C|)``; 0 means that the matrix stays frozen.

    Raises:
        PlanError: If the rule or `min_rank` is unknown or out of range, or the
            block is empty or larger than the weight.

    Example:
        >>> dynamic_rank(3000, 100, 50, (100, 50)), dynamic_rank(3000, 100, 50, (200, 100))
        (20, 5)
    """
    check_rank_rule(rule, min_rank)
    if not (1 <= num_rows <= shape[0] and 1 <= num_cols <= shape[1]):
        raise PlanError(f'a block of {num_rows} x {num_cols} does not fit in a weight of {shape}')
    rank = unbounded_rank(num_sensitive, num_rows, num_cols, shape[0] * shape[1], rule)
    return min(max(rank, min_rank), num_rows, num_cols)


def check_rank_rule(rule: str | int, min_rank: int) -> None:
    """Raises PlanError where the settings are not a rule and a minimum."""
    is_rank = isinstance(rule, int) and not isinstance(rule, bool) and rule >= 1
    if not is_rank and rule not in RANK_RULES:
        raise PlanError(
            f'rank_rule={rule!r}: expected {" or ".join(map(repr, RANK_RULES))}, or a fixed rank '
            'of at least 1'
        )
    if isinstance(min_rank, bool) or not isinstance(min_rank, int) or min_rank < 0:
        raise PlanError(f'min_rank={min_rank!r}: expected an integer of at least 0')


def unbounded_rank(
    num_sensitive: Count, num_rows: Count, num_cols: Count, area: int, rule: str | int
) -> Count:
    """The rule itself (Eq. 7), in integers (no rounding error), for numbers or int64 tensors."""
    if rule == 'eq7':
        return (num_sensitive * num_rows * num_cols) // (area * (num_rows + num_cols))
    if rule == 'count':
        return num_sensitive // (num_rows + num_cols)
    return num_sensitive * 0 + int(rule)
