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
from .pickle_stack import PickleStack

__all__ = ['PickleMachine', 'run_pickle']

MODULES = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}  # Python 2's names, in protocols 0-2


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


class PickleMachine(PickleStack):
    """The machine; see `run_pickle`."""

    def __init__(
        self, types: Mapping[str, AllowedType], persistent: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__()
        self.types, self.persistent = types, persistent

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
