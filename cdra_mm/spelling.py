"""The word that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ['did_you_mean']


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing where no known word is near.

    Example:
        >>> did_you_mean('Gama', ['gamma', 'beta'])
        " (did you mean 'gamma'?)"
        >>> did_you_mean('x', ['gamma'])
        ''
    """
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(str(word).lower(), by_lower, n=1)
    return f' (did you mean {by_lower[near[0]]!r}?)' if near else ''
