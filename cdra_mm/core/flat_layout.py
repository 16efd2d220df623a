"""Where tensors begin that are laid out one after another in a flat one."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

__all__ = ['begins_of', 'padded']

ALIGNMENT = 64  # entries: at least 128 bytes, in fp32 the 256 of an allocation of its own


def padded(numel: int) -> int:
    """Entries that a tensor takes up, so that the next one is aligned.

    Example:
        >>> padded(1), padded(64), padded(65)
        (64, 64, 128)
    """
    return -(-numel // ALIGNMENT) * ALIGNMENT


def begins_of(numels: Iterable[int]) -> list[int]:
    """Where tensors of so many entries begin, and last where they end.

    Example:
        >>> begins_of([1, 65])
        [0, 64, 192]
    """
    return list(accumulate(map(padded, numels), initial=0))
