"""The dynamic rank of a compact block (CDRA-SPT, Eq. 7).

The paper prints Eq. 7 without a factor. Its own shares of trained parameters need one, or another
rule: with selections of SPT's size, the printed rule trains 0.09 to 0.24 % where the paper states
0.49 % (docs/table4.md). SPT, whose selection the paper takes over, makes the same kind of
comparison, of selected entries with what an adapter trains, with a factor of 10 in its released
code and with none in its text. So the factor is a setting, and 1 is what is printed.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TypeVar

from torch import Tensor

from cdra_mm.errors import PlanError
from cdra_mm.settings import check_types

__all__ = ['RANK_RULES', 'check_rank_rule', 'dynamic_rank', 'exact', 'unbounded_rank']

RANK_RULES = ('eq7', 'count')
LARGEST = (1 << 63) - 1  # of an int64
Count = TypeVar('Count', int, Tensor)


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
    """The largest rank that trains no more than the selected entries warrant (Eq. 7).

    With n selected entries in a block ``|R| x |C|`` of a weight ``[O, I]``:

    - ``'eq7'``: ``max r  s.t.  alpha n >= r (|R|+|C|) * (O I) / (|R||C|)``.
    - ``'count'``: ``max r  s.t.  alpha n >= r (|R|+|C|)``, without the area factor.
    - an integer: that rank for every block (the paper's Table 4).

    Eq. 7 as it is printed is ``'eq7'`` with a factor of 1.

    Args:
        num_sensitive: n.
        num_rows: ``|R|``.
        num_cols: ``|C|``.
        shape: ``(O, I)``.
        rule: ``'eq7'``, ``'count'`` or a fixed rank.
        min_rank: Rank of a block whose rule gives less.
        alpha: The factor on n, above 0 and finite, taken as the decimal number that it is written
            as; 1 for a fixed rank.

    Returns:
        The rank, at most ``min(|R|, |C|)``; 0 means that the matrix stays frozen.

    Raises:
        PlanError: If the rule, `min_rank` or the factor is unknown or out of range, a fixed rank
            has a factor, or the block is empty or larger than the weight.

    Example:
        >>> dynamic_rank(3000, 100, 50, (100, 50)), dynamic_rank(3000, 100, 50, (200, 100))
        (20, 5)
    """
    check_rank_rule(rule, min_rank, alpha)
    if not (1 <= num_rows <= shape[0] and 1 <= num_cols <= shape[1]):
        raise PlanError(f'a block of {num_rows} x {num_cols} does not fit in a weight of {shape}')
    rank = unbounded_rank(
        num_sensitive, num_rows, num_cols, shape[0] * shape[1], rule, exact(alpha)
    )
    return min(max(rank, min_rank), num_rows, num_cols)


def check_rank_rule(rule: str | int, min_rank: int, alpha: float = 1) -> None:
    """Raises PlanError where the settings are not a rule, a minimum and a factor."""
    is_rank = isinstance(rule, int) and not isinstance(rule, bool) and rule >= 1
    if not is_rank and rule not in RANK_RULES:
        raise PlanError(
            f'rank_rule={rule!r}: expected {" or ".join(map(repr, RANK_RULES))}, or a fixed rank '
            'of at least 1'
        )
    if isinstance(min_rank, bool) or not isinstance(min_rank, int) or min_rank < 0:
        raise PlanError(f'min_rank={min_rank!r}: expected an integer of at least 0')
    check_types({'rank_alpha': alpha}, {'rank_alpha': float}, PlanError)
    if alpha <= 0:
        raise PlanError(f'rank_alpha={alpha!r}: expected a number above 0')
    if is_rank and alpha != 1:
        raise PlanError(
            f'rank_alpha={alpha!r} with rank_rule={rule}: a fixed rank does not depend on the '
            "selected entries; leave rank_alpha out, or use rank_rule='eq7' or 'count'"
        )


def exact(alpha: float) -> Fraction:
    """The decimal number that a factor is written as: 0.1 is a tenth, which its double is not."""
    return Fraction(str(alpha))


def unbounded_rank(
    num_sensitive: Count,
    num_rows: Count,
    num_cols: Count,
    area: int,
    rule: str | int,
    alpha: Fraction,
) -> Count:
    """The rule itself (Eq. 7), in integers (no rounding error), for numbers or int64 tensors.

    A rank beyond int64, which an absurd factor gives, is the largest int64 in a tensor.
    """
    if rule not in RANK_RULES:
        return num_sensitive * 0 + int(rule)
    covered, price = num_sensitive, num_rows + num_cols  # of a rank of 1
    if rule == 'eq7':
        covered, price = covered * num_rows * num_cols, area * price
    if alpha == 1:
        return covered // price
    # floor(alpha covered / price) in two digits to the base of a price: as covered is at most a
    # price squared, nothing here is larger than a price times `widest`.
    top, bottom = alpha.as_integer_ratio()
    widest = top + bottom
    if isinstance(price, Tensor) and int(price.max()) * widest > LARGEST:
        numbers = zip(covered.tolist(), price.tolist(), strict=True)  # Python's have no end
        return covered.new_tensor([min(c * top // (p * bottom), LARGEST) for c, p in numbers])
    high, low = covered // price, covered % price
    return high * top // bottom + (high * top % bottom * price + low * top) // (bottom * price)
