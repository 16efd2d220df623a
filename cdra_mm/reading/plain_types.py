"""What pickles of training code hold of the standard library, as plain values."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .allowed_types import AllowedType, ForeignTypeError, OrderedItems, PendingObject, ReadingError

__all__ = ['PLAIN_TYPES']

Finish = Callable[[Any], Any]


def _encoded(made: PendingObject, finish: Finish) -> bytes:
    # How protocols 0 to 2 store bytes.
    text, *encoding = made.args
    if not isinstance(text, str) or encoding not in ([], ['latin1'], ['latin-1']):
        raise ReadingError('bytes that are no text in latin-1')
    return text.encode('latin-1')


def _bytes(made: PendingObject, finish: Finish) -> bytes:
    if made.args and isinstance(made.args[0], str):
        return _encoded(made, finish)
    if made.args and not isinstance(made.args[0], bytes):
        raise ReadingError('bytes of no bytes')
    return made.args[0] if made.args else b''


def _ordered(made: PendingObject, finish: Finish) -> OrderedItems:
    found = OrderedItems()
    for pairs in made.args[:1]:
        items = pairs.items() if isinstance(pairs, dict) else pairs
        for key, value in items:
            if not isinstance(key, str | int):
                raise ReadingError('a key that is no text')
            found[key] = value
    return found


def _members(kind: type) -> Callable[[PendingObject, Finish], Any]:
    def build(made: PendingObject, finish: Finish) -> Any:
        values = finish(made.args[0]) if made.args else ()
        if not isinstance(values, list | tuple | set | frozenset):
            raise ReadingError(f'a {kind.__name__} of no values')
        try:
            return kind(values)
        except TypeError:
            raise ReadingError(f'a {kind.__name__} of values that cannot be in one') from None

    return build


def _of_numbers(kind: Callable[..., Any], *types: type) -> Callable[[PendingObject, Finish], Any]:
    """A value that its constructor checks, made of plain numbers."""

    def build(made: PendingObject, finish: Finish) -> Any:
        if not all(type(arg) in types for arg in made.args):
            raise ReadingError(f'a {kind.__name__} of what are no numbers')
        try:
            return kind(*made.args)
        except (TypeError, ValueError, OverflowError) as error:
            raise ReadingError(f'a {kind.__name__} that is none: {error}') from None

    return build


def _moment(kind: type, order: str) -> Callable[[PendingObject, Finish], Any]:
    """A date or time, which a pickle holds as bytes that its own constructor hardly checks."""

    def build(made: PendingObject, finish: Finish) -> Any:
        data = made.args[0] if made.args else None
        if isinstance(data, str):
            data = data.encode('latin-1')
        if not isinstance(data, bytes) or len(data) != sum(map(int, order)) or len(made.args) > 1:
            raise ReadingError(f'a {kind.__name__} that is none, or has a time zone')
        numbers, at = [], 0
        for length in map(int, order):
            numbers.append(int.from_bytes(data[at : at + length], 'big'))
            at += length
        try:
            return kind(*numbers)
        except ValueError as error:
            raise ReadingError(f'a {kind.__name__} that is none: {error}') from None

    return build


def _path(made: PendingObject, finish: Finish) -> Path:
    parts = finish(made.args)
    if not all(isinstance(part, str) for part in parts):
        raise ReadingError('a path of what is no text')
    return Path(*parts)


def _namespace(made: PendingObject, finish: Finish) -> argparse.Namespace:
    state = finish(made.state) or {}
    found = argparse.Namespace()
    if not isinstance(state, dict):
        raise ReadingError('a Namespace of no settings')
    for name, value in state.items():
        if not isinstance(name, str) or name.startswith('__'):
            raise ReadingError('a Namespace with a setting that has no name of its own')
        vars(found)[name] = value
    return found


def _default(made: PendingObject, finish: Finish) -> OrderedItems:
    return OrderedItems()  # what it makes of missing keys is left behind


def _types() -> dict[str, AllowedType]:
    number = (int, type(None))
    made = {
        'builtins.set': _members(set),
        'builtins.frozenset': _members(frozenset),
        'builtins.slice': _of_numbers(slice, *number),
        'builtins.range': _of_numbers(range, int),
        'builtins.xrange': _of_numbers(range, int),
        'builtins.complex': _of_numbers(complex, int, float),
        'datetime.timedelta': _of_numbers(datetime.timedelta, int),
        'datetime.date': _moment(datetime.date, '211'),
        'datetime.time': _moment(datetime.time, '1113'),
        'datetime.datetime': _moment(datetime.datetime, '2111113'),
        'argparse.Namespace': _namespace,
    }
    for module in ('pathlib', 'pathlib._local'):
        names = ('Path', 'PosixPath', 'WindowsPath', 'PurePath', 'PurePosixPath', 'PureWindowsPath')
        made |= {f'{module}.{name}': _path for name in names}
    at_once = {
        '_codecs.encode': _encoded,
        'builtins.bytes': _bytes,
        'builtins.bytearray': _bytes,
        'collections.OrderedDict': _ordered,
        'collections.defaultdict': _default,
        'collections.Counter': _ordered,
    }
    bare = ('dict', 'list', 'tuple', 'int', 'float', 'str', 'bool', 'object')
    types = [AllowedType(name, build) for name, build in made.items()]
    types += [AllowedType(name, build, at_once=True) for name, build in at_once.items()]
    types += [AllowedType(f'builtins.{name}') for name in bare]  # of a defaultdict
    types += [AllowedType('copyreg._reconstructor', _never)]
    return {allowed.name: allowed for allowed in types}


def _never(made: PendingObject, finish: Finish) -> Any:
    raise ForeignTypeError(made.kind.name)  # the machine makes its objects itself


PLAIN_TYPES = _types()
