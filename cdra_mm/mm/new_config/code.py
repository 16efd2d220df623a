"""Python text of plain values, as our configs are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ['Code', 'code', 'statement']

WIDTH = 100
INDENT = '    '


class Code(str):
    """An expression that is written as it is."""


def statement(name: str, value: Any) -> str:
    """An assignment.

    Example:
        >>> statement('train_cfg', {'max_iters': Code('steps')})
        'train_cfg = dict(max_iters=steps)'
    """
    return f'{name} = {code(value, len(name) + 3)}'


def code(value: Any, used: int = 0, depth: int = 0) -> str:
    """A value as text, broken into lines where it is too long for one.

    Args:
        value: Dicts, lists, tuples and scalars, with `Code` between them.
        used: Characters before it on its line.
        depth: Levels that its line is indented.
    """
    line = _line(value)
    if len(line) + used + depth * len(INDENT) < WIDTH or not _parts(value):
        return line
    opening, parts, closing = _parts(value)
    inner = INDENT * (depth + 1)
    lines = [f'{inner}{key}{code(part, len(key), depth + 1)},' for key, part in parts]
    return '\n'.join([opening, *lines, INDENT * depth + closing])


def _line(value: Any) -> str:
    if not _parts(value):
        return str(value) if isinstance(value, Code) else repr(value)
    opening, parts, closing = _parts(value)
    text = ', '.join(key + _line(part) for key, part in parts)
    return opening + text + (',' if isinstance(value, tuple) and len(value) == 1 else '') + closing


def _parts(value: Any) -> Any:
    """(opening, (key, part) pairs, closing) of what has parts."""
    if isinstance(value, Mapping) and all(str(key).isidentifier() for key in value):
        return 'dict(', [(f'{key}=', part) for key, part in value.items()], ')'
    if isinstance(value, Mapping):
        return '{', [(f'{key!r}: ', part) for key, part in value.items()], '}'
    if isinstance(value, list | tuple):
        ends = '[]' if isinstance(value, list) else '()'
        return ends[0], [('', part) for part in value], ends[1]
    return None
