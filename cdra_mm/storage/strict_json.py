"""JSON that means one thing: no name twice in an object, no number that is not finite."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

__all__ = ['DEEPEST', 'strict_json']

DEEPEST = 100  # objects and lists inside each other


def strict_json(text: str | bytes, *, finite: bool = True) -> Any:
    """The value of a JSON text.

    Python's reader keeps the last of two equal names and takes ``NaN``, ``Infinity`` and
    ``1e999``: what it gives is then not what was written, or cannot be written again.

    Args:
        text: The text.
        finite: Refuse numbers that are not finite. Logs and metrics of a run that has diverged
            hold such numbers.

    Raises:
        ValueError: If it is no JSON, nested too deep, or one of these.

    Example:
        >>> strict_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
            ...
        ValueError: 'a' stands twice in an object
    """
    number = _number if finite else float
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=number, parse_float=number
        )
    except RecursionError:
        raise ValueError('it is nested too deep') from None
    except TypeError as error:
        raise ValueError(str(error)) from None
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _parts(outer)]:
        depth += 1
        if depth > DEEPEST:  # what walks through it later must not run out of stack
            raise ValueError('it is nested too deep')
    return value


def _parts(value: Any) -> list[Any]:
    """The objects and lists right inside a value."""
    inside = value.values() if isinstance(value, dict) else value
    return [v for v in inside if type(v) in (dict, list)] if type(value) in (dict, list) else []


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f'{twice!r} stands twice in an object')
    return found


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f'{text} is no finite number')
    return number
