"""A pickle is a program for a small machine with a stack; this machine can build inert values only.

It knows the operations of Python's pickles of every protocol, but no import: a name is looked up in
a table of types, a call of one gives a record of its arguments. What is not in the table ends the
reading.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from .allowed_types import AllowedType, ForeignTypeError, OrderedItems, PendingObject, ReadingError

__all__ = ['PickleMachine', 'run_pickle']

PLAIN = (str, int, float, bool, type(None), bytes, complex)
VALUES = {
    'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'BINBYTES', 'SHORT_BINBYTES',
    'BINBYTES8', 'UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8', 'FLOAT', 'BINFLOAT',
}  # fmt: skip
MODULES = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}  # Python 2's names, in protocols 0-2
MARK = object()


def run_pickle(
    stream: BinaryIO,
    types: Mapping[str, AllowedType],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Runs the pickle that begins at the stream's position, and leaves the stream after it.

    Args:
        stream: Its ``read`` gives no more than there is, whatever it is asked for.
        types: What may be named, by dotted name.
        persistent: Gives the value of a persistent id.

    Returns:
        Plain values, containers and `PendingObject` records; see `build_values`.

    Raises:
        ReadingError: If it is no pickle, is cut off, or does what no writer does.
        ForeignTypeError: If it names something that is not in the table.
    """
    machine = PickleMachine(types, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.do(opcode.name, argument)
    except ReadingError:
        raise
    except (
        ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError, AttributeError,
        MemoryError,
    ) as error:  # fmt: skip
        raise ReadingError(f'no pickle, or damaged: {type(error).__name__}: {error}') from None
    return machine.result


class PickleMachine:
    """The machine; see `run_pickle`."""

    def __init__(
        self, types: Mapping[str, AllowedType], persistent: Callable[[Any], Any] | None = None
    ) -> None:
        self.types, self.persistent = types, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def do(self, name: str, argument: Any) -> None:
        """One operation."""
        if name in VALUES:
            self.stack.append(argument)
            return
        method = getattr(self, f'_{name.lower()}', None)
        if method is None:
            raise ForeignTypeError(f'the operation {name}')
        method(argument)

    def _marked(self) -> list[Any]:
        """What lies above the last mark; both are taken off."""
        position = len(self.stack) - 1
        while self.stack[position] is not MARK:
            position -= 1
            if position < 0:
                raise ReadingError('no mark')
        items = self.stack[position + 1 :]
        del self.stack[position:]
        return items

    def _pop_value(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise ReadingError('a mark in the place of a value')
        return value

    # Frames and versions say nothing.

    def _proto(self, argument: Any) -> None:
        pass

    _frame = _proto

    def _stop(self, argument: Any) -> None:
        self.result = self._pop_value()

    # Plain values.

    def _none(self, argument: Any) -> None:
        self.stack.append(None)

    def _newtrue(self, argument: Any) -> None:
        self.stack.append(True)

    def _newfalse(self, argument: Any) -> None:
        self.stack.append(False)

    def _string(self, argument: str) -> None:
        # Texts of Python 2 are bytes; pickletools gives one letter for each.
        self.stack.append(argument.encode('latin-1').decode('utf-8'))

    _binstring = _short_binstring = _string

    def _bytearray8(self, argument: Any) -> None:
        self.stack.append(bytes(argument))

    # Containers.

    def _mark(self, argument: Any) -> None:
        self.stack.append(MARK)

    def _pop(self, argument: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, argument: Any) -> None:
        self._marked()

    def _dup(self, argument: Any) -> None:
        self.stack.append(self.stack[-1])

    def _empty_list(self, argument: Any) -> None:
        self.stack.append([])

    def _empty_dict(self, argument: Any) -> None:
        self.stack.append({})

    def _empty_tuple(self, argument: Any) -> None:
        self.stack.append(())

    def _empty_set(self, argument: Any) -> None:
        self.stack.append(set())

    def _list(self, argument: Any) -> None:
        self.stack.append(self._marked())

    def _tuple(self, argument: Any) -> None:
        self.stack.append(tuple(self._marked()))

    def _tuple1(self, argument: Any) -> None:
        self.stack[-1:] = [(self._top(),)]

    def _tuple2(self, argument: Any) -> None:
        second = self._pop_value()
        self.stack[-1:] = [(self._top(), second)]

    def _tuple3(self, argument: Any) -> None:
        third, second = self._pop_value(), self._pop_value()
        self.stack[-1:] = [(self._top(), second, third)]

    def _top(self) -> Any:
        if self.stack[-1] is MARK:
            raise ReadingError('a mark in the place of a value')
        return self.stack[-1]

    def _dict(self, argument: Any) -> None:
        items = self._marked()
        self.stack.append({})
        self._set_items(items)

    def _frozenset(self, argument: Any) -> None:
        self.stack.append(frozenset(map(_key, self._marked())))

    def _append(self, argument: Any) -> None:
        value = self._pop_value()
        self._extend([value])

    def _appends(self, argument: Any) -> None:
        self._extend(self._marked())

    def _extend(self, values: list[Any]) -> None:
        if type(self._top()) is not list:
            raise ReadingError('entries for what is no list')
        self.stack[-1].extend(values)

    def _additems(self, argument: Any) -> None:
        values = self._marked()
        if type(self._top()) is not set:
            raise ReadingError('members for what is no set')
        self.stack[-1].update(map(_key, values))

    def _setitem(self, argument: Any) -> None:
        value, key = self._pop_value(), self._pop_value()
        self._set_items([key, value])

    def _setitems(self, argument: Any) -> None:
        self._set_items(self._marked())

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) not in (dict, OrderedItems) or len(items) % 2:
            raise ReadingError('items for what is no dict')
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    # The memo: what stands in several places.

    def _put(self, argument: int) -> None:
        self.memo[argument] = self._top()

    _binput = _long_binput = _put

    def _memoize(self, argument: Any) -> None:
        self.memo[len(self.memo)] = self._top()

    def _get(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    _binget = _long_binget = _get

    # Names, and what is asked of them.

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(' ')
        self._name(module, name)

    def _stack_global(self, argument: Any) -> None:
        name, module = self._pop_value(), self._pop_value()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ReadingError('a name that is no text')
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        full = f'{MODULES.get(module, module)}.{name}'
        kind = self.types.get(full)
        if kind is None:
            raise ForeignTypeError(full[:100])
        self.stack.append(kind)

    def _persid(self, argument: Any) -> None:
        raise ReadingError('a persistent id that is text')

    def _binpersid(self, argument: Any) -> None:
        identity = self._pop_value()
        if self.persistent is None:
            raise ReadingError('a persistent id')
        self.stack.append(self.persistent(identity))

    def _reduce(self, argument: Any) -> None:
        args, kind = self._pop_value(), self._pop_value()
        self.stack.append(self._make(kind, args))

    _newobj = _reduce

    def _newobj_ex(self, argument: Any) -> None:
        named, args, kind = self._pop_value(), self._pop_value(), self._pop_value()
        if named:
            raise ForeignTypeError('a call with named arguments')
        self.stack.append(self._make(kind, args))

    def _inst(self, argument: str) -> None:
        args = tuple(self._marked())
        self._global(argument)
        self.stack.append(self._make(self._pop_value(), args))

    def _obj(self, argument: Any) -> None:
        kind, *args = self._marked()
        self.stack.append(self._make(kind, tuple(args)))

    def _make(self, kind: Any, args: Any) -> Any:
        if isinstance(kind, PendingObject):
            raise ForeignTypeError(f'a call of what {kind.kind.name} gives')
        if not isinstance(kind, AllowedType) or not isinstance(args, tuple):
            raise ReadingError('a call of what cannot be called')
        if kind.name == 'copyreg._reconstructor':  # how protocols 0 and 1 make an object
            if not args or not isinstance(args[0], AllowedType):
                raise ReadingError('an object of no type')
            kind, args = args[0], ()
        if kind.build is None:
            raise ForeignTypeError(f'a call of {kind.name}')
        made = PendingObject(kind, args)
        return kind.build(made, lambda value: value) if kind.at_once else made

    def _build(self, argument: Any) -> None:
        state, target = self._pop_value(), self._top()
        if not isinstance(target, PendingObject | OrderedItems) or target.state is not None:
            raise ForeignTypeError('a state for what has none')
        target.state = state


def _key(value: Any) -> Any:
    """A key of a dict or member of a set; what is nested could not be hashed without end."""
    parts = value if type(value) is tuple else (value,)
    for part in parts:
        if not isinstance(part, (*PLAIN, PendingObject)):
            raise ReadingError(f'a key that is a {type(part).__name__}')
    return value
