"""Settings: their types are those of the annotations, their ranges are declared beside them.

    @dataclass(frozen=True)
    class Example:
        rank: int = setting(8, minimum=1)
        scale: float = setting(1.0, above=0)

        def __post_init__(self) -> None:
            check_settings(self)

A value that passes is of its type and in its range, finite, and small enough for an int64 tensor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from cdra_mm.errors import CDRAError, ConfigError

__all__ = ['check_settings', 'check_types', 'count', 'probability', 'setting']

LARGEST = (1 << 63) - 1
SHOWN = 200  # characters of a value in a message


@dataclass(frozen=True)
class _Range:
    """What a value may be beside its type; see `setting`."""

    minimum: float = -math.inf
    above: float = -math.inf
    maximum: float = math.inf
    below: float = math.inf
    choices: tuple[Any, ...] = ()
    what: str = ''
    note: str = ''

    def holds(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        return bool(self.minimum <= value <= self.maximum and self.above < value < self.below)

    def words(self, hint: Any) -> str:
        """What a message expects of a value with this annotation."""
        note = f' ({self.note})' if self.note else ''
        if self.choices:
            return f'one of {", ".join(map(repr, self.choices))}{note}'
        what = self.what or ('a number' if float in (hint, *get_args(hint)) else 'an integer')
        open_left = self.above > self.minimum
        low = self.above if open_left else self.minimum
        high = min(self.below, self.maximum)
        if high == math.inf:
            return f'{what} {"above" if open_left else "of at least"} {low}{note}'
        ends = '(' if open_left else '[', ')' if self.below <= self.maximum else ']'
        return f'{what} in {ends[0]}{low}, {high}{ends[1]}{note}'


def setting(default: Any, **limits: Any) -> Any:
    """A field of a dataclass of settings, with its range.

    Args:
        default: Its default; it is not checked against the range if it is None.
        **limits: Some of ``minimum``, ``above`` (not equal), ``maximum``, ``below`` (not equal);
            or ``choices``, all values that there are. ``what`` names the kind of value in messages
            (``'a probability'``), ``note`` follows in parentheses.
    """
    return field(default=default, metadata={'range': _Range(**limits)})


def count(default: Any, minimum: int = 1) -> Any:
    """A `setting` that is a number of things."""
    return setting(default, minimum=minimum, what='a count')


def probability(default: Any) -> Any:
    """A `setting` that is a probability below 1, as dropout is."""
    return setting(default, minimum=0, below=1, what='a probability')


def check_settings(settings: Any, error: type[CDRAError] = ConfigError) -> None:
    """Checks types and ranges of a dataclass of settings.

    Args:
        settings: The dataclass.
        error: What is raised.

    Raises:
        CDRAError: The error asked for, if a value is of no type that its annotation allows, or
            out of its range.
    """
    hints = _hints(cast(Hashable, type(settings)))
    for own in fields(settings):
        value, limits = getattr(settings, own.name), own.metadata.get('range', _Range())
        if not limits.choices:
            check_types({own.name: value}, hints, error)
        unset = value is None and not limits.choices
        if not unset and own.metadata and not limits.holds(value):
            raise error(f'{own.name}={_short(value)}: expected {limits.words(hints[own.name])}')


_hints = functools.cache(get_type_hints)


def check_types(
    values: Mapping[str, Any], hints: Mapping[str, Any], error: type[CDRAError] = ConfigError
) -> None:
    """Checks settings against the annotations of what takes them.

    Args:
        values: Settings by name.
        hints: Their annotations, as `typing.get_type_hints` gives them: ``bool``, ``int``,
            ``float``, ``str``, ``Path``, ``Sequence[str]``, ``Sequence[int]``, ``Mapping``,
            ``None``, a class of ours, and unions of these.
        error: What is raised.

    Raises:
        CDRAError: The error asked for, if a value is of no type that its annotation allows, is not
            finite, or does not fit into 64 bits.

    Example:
        >>> check_types({'gamma': 'a lot'}, {'gamma': float | None})
        Traceback (most recent call last):
            ...
        cdra_mm.errors.ConfigError: gamma='a lot': expected a finite number or None
    """
    for name, value in values.items():
        hint = hints[name]
        choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [_kind(choice) for choice in choices]
        if not any(fits(value) for _, fits in kinds):
            expected = ' or '.join(words for words, _ in kinds)
            raise error(f'{name}={_short(value)}: expected {expected}')


def _kind(hint: Any) -> tuple[str, Callable[[Any], bool]]:
    """What a message says of a type, and the check."""
    known = _KINDS.get(hint) or _KINDS.get(get_origin(hint))
    return known or (f'of type {hint.__name__}', lambda value: isinstance(value, hint))


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


# See `_kind`.
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
