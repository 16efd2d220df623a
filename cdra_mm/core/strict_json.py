"""JSON that means one thing: no name twice in an object, no number that is not finite."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

__all__ = ['strict_json']


def strict_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Python's reader keeps the last of two equal names and takes ``NaN``, ``Infinity`` and
    ``1e999``: what it gives is then not what was written, or cannot be written again.

    Raises:
        ValueError: If it is no JSON, nested too deep, or one of these.

    Example:
        >>> strict_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
            ...
        ValueError: 'a' stands twice in an object
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_number, parse_float=_number
        )
    except RecursionError:
        raise ValueError('it is nested too deep') from None
    except TypeError as error:
        raise ValueError(str(error)) from None


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
