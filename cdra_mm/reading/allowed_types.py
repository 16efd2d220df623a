"""What a pickle may name, and the inert records that stand for what it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    'ForeignTypeError',
    'AllowedType',
    'PendingObject',
    'NamedFunction',
    'OrderedItems',
    'ReadingError',
]


class ReadingError(ValueError):
    """A file is damaged, or says something that is not there."""


class ForeignTypeError(ReadingError):
    """A file asks for a type or a function that is not known to be harmless."""


@dataclass(frozen=True)
class AllowedType:
    """A type or a function that a pickle may name.

    Attributes:
        name: Its dotted name.
        build: Gives the value of a `PendingObject`; gets that and a function that finishes what is
            in it. None for what can only be named.
        value: What stands in the tree for the bare name, for types such as ``torch.float32``.
        at_once: Whether the value is built when the pickle asks for it; its arguments are plain.
    """

    name: str
    build: Callable[[PendingObject, Callable[[Any], Any]], Any] | None = None
    value: Any = None
    at_once: bool = False


@dataclass(eq=False)
class PendingObject:
    """What a pickle asks for: a call of a kind with arguments, then a state that is set.

    Attributes:
        kind: The kind.
        args: The arguments; unfinished values.
        state: What the pickle sets as its state, None for nothing.
    """

    kind: AllowedType
    args: tuple[Any, ...] = ()
    state: Any = None


class OrderedItems(dict[Any, Any]):
    """An ``OrderedDict`` under construction; ``state`` is what it holds beside its items."""

    state: Any = None


@dataclass(frozen=True)
class NamedFunction:
    """Stands in the tree for a function that the file names; it cannot be called."""

    name: str = field()
