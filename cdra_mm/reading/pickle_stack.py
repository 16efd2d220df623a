"""The stack of a pickle: plain values, containers, and the memo of what stands in two places.

Here nothing can be named or called; `pickle_machine` adds that.
"""

from __future__ import annotations

from typing import Any

from .allowed_types import ForeignTypeError, OrderedItems, PendingObject, ReadingError

__all__ = ['PickleStack']

PLAIN = (str, int, float, bool, type(None), bytes, complex)
VALUES = {
    'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'BINBYTES', 'SHORT_BINBYTES',
    'BINBYTES8', 'UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8', 'FLOAT', 'BINFLOAT',
}  # fmt: skip
MARK = object()


class PickleStack:
    """The operations of a pickle on plain values.

    Attributes:
        result: What the pickle holds, once it has stopped.
    """

    def __init__(self) -> None:
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


def _key(value: Any) -> Any:
    """A key of a dict or member of a set; what is nested could not be hashed without end."""
    parts = value if type(value) is tuple else (value,)
    for part in parts:
        if not isinstance(part, (*PLAIN, PendingObject)):
            raise ReadingError(f'a key that is a {type(part).__name__}')
    return value
