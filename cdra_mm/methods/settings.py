"""Types of settings: what a config says against what a method's annotations say.

Whether a value is in range is for the method itself; a value that passes here is of the right
type, finite, and small enough for an int64 tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from cdra_mm.errors import ConfigError

__all__ = ['check_types', 'is_number']

LARGEST = (1 << 63) - 1
SHOWN = 200  # characters of a value in a message


def check_types(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Checks settings against the annotations of what takes them.

    Args:
        values: Settings by name.
        hints: Their annotations, as `typing.get_type_hints` gives them: ``bool``, ``int``,
            ``float``, ``str``, ``Path``, ``Sequence[str]``, ``Sequence[int]``, ``Mapping``,
            ``None`` and unions of these.

    Raises:
        ConfigError: If a value is of no type that its annotation allows, is not finite, or
            does not fit into 64 bits.

    Example:
        >>> check_types({'gamma': 'a lot'}, {'gamma': float | None})
        Traceback (most recent call last):
            ...
        cdra_mm.errors.ConfigError: gamma='a lot': expected a finite number or None
    """
    for name, value in values.items():
        hint = hints[name]
        choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [_KINDS[choice if choice in _KINDS else get_origin(choice)] for choice in choices]
        if not any(fits(value) for _, fits in kinds):
            expected = ' or '.join(words for words, _ in kinds)
            raise ConfigError(f'{name}={_short(value)}: expected {expected}')


def is_number(value: Any) -> bool:
    """Whether it is an integer or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    """What was given: a list of a million entries is no help in a message."""
    given = repr(value)
    return given if len(given) <= SHOWN else f'{given[:SHOWN]} ...'


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_finite(value: Any) -> bool:
    return _is_integer(value) or isinstance(value, float) and math.isfinite(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)


def _are_integers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_integer, value))


# What a message says, and the check.
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    NoneType: ('None', lambda value: value is None),
    bool: ('True or False', lambda value: isinstance(value, bool)),
    int: ('an integer', _is_integer),
    float: ('a finite number', _is_finite),
    str: ('text', lambda value: isinstance(value, str)),
    Path: ('a path', lambda value: isinstance(value, Path)),
    Sequence[str]: ('a list of texts', _are_texts),
    Sequence[int]: ('a list of integers', _are_integers),
    Mapping: ('a dict', lambda value: isinstance(value, Mapping)),
}
