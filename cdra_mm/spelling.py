"""Names in messages: the one that was probably meant, and the first of many."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ['did_you_mean', 'first_of', 'unknown']


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


def unknown(what: str, word: str, known: Iterable[str], how: str = ' is unknown') -> str:
    """The message for a word that is not known, with the nearest one and all others.

    Example:
        >>> unknown('--head', 'liner', ['linear', 'upernet'])
        "--head 'liner' is unknown (did you mean 'linear'?): expected one of linear, upernet"
    """
    known = list(known)
    expected = f'one of {", ".join(known)}' if known else 'none'
    return f'{what} {word!r}{how}{did_you_mean(word, known)}: expected {expected}'


def first_of(things: Iterable[object], most: int = 1) -> str:
    """The first of some things, and how many more there are.

    Example:
        >>> first_of(['a', 'b', 'c']), first_of(['a', 'b', 'c'], 2), first_of(['a'], 2)
        ('a and 2 more', 'a, b and 1 more', 'a')
    """
    texts = list(map(str, things))
    more = f' and {len(texts) - most} more' if len(texts) > most else ''
    return ', '.join(texts[:most]) + more
