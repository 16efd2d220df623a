"""From the records that a pickle leaves to values: one walk, bounded in depth and in size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from .allowed_types import AllowedType, ForeignTypeError, OrderedItems, PendingObject, ReadingError

__all__ = ['build_values']

MAX_DEPTH = 100  # containers inside each other
MAX_BITS = 1024  # bits of a whole number
# Values, every repetition counted: what stands in two places is walked through twice by others.
MAX_VALUES = 1_000_000


def build_values(tree: Any, most: int) -> Any:
    """The values of a tree of records.

    Args:
        tree: From `run_pickle`.
        most: Values that the pickle may hold by its length; a million are allowed in any case.

    Raises:
        ReadingError: If it is nested too deep, holds itself, or grows without bounds.
        ForeignTypeError: If it holds a type in the place of a value.
    """
    return _Walk(max(most, MAX_VALUES)).value(tree)


class _Walk:
    def __init__(self, most: int) -> None:
        self.most = most
        self.done: dict[int, tuple[Any, int]] = {}  # by identity: the value, and how much it holds
        self.open: set[int] = set()
        self.count = 0  # of what is being walked through

    def value(self, raw: Any) -> Any:
        kind = type(raw)
        self._add(1)
        if kind is str:
            if not raw.isascii():
                try:
                    raw.encode()
                except UnicodeEncodeError:
                    raise ReadingError('a text that is no Unicode') from None
            return raw
        if kind is int:
            if raw.bit_length() > MAX_BITS:
                raise ReadingError(f'a whole number of {raw.bit_length():,} bits')
            return raw
        if kind is AllowedType:
            if raw.value is None:
                raise ForeignTypeError(f'the bare name {raw.name}')
            return raw.value
        if kind not in _BUILDERS:
            return raw
        if id(raw) in self.done:
            value, count = self.done[id(raw)]
            self._add(count)
            return value
        if id(raw) in self.open:
            raise ReadingError('a value that holds itself')
        if len(self.open) >= MAX_DEPTH:
            raise ReadingError(f'more than {MAX_DEPTH} values inside each other')
        self.open.add(id(raw))
        before = self.count
        value = _BUILDERS[kind](self, raw)
        self.open.remove(id(raw))
        self.done[id(raw)] = value, self.count - before
        return value

    def _add(self, count: int) -> None:
        self.count += count
        if self.count > self.most:
            raise ReadingError(f'more than {self.most:,} values: it repeats itself without end')

    def made(self, raw: PendingObject) -> Any:
        assert raw.kind.build is not None
        return raw.kind.build(raw, self.value)

    def mapping(self, raw: Mapping[Any, Any]) -> dict[Any, Any]:
        return {self._hashed(key): self.value(value) for key, value in raw.items()}

    def ordered(self, raw: OrderedItems) -> OrderedDict[Any, Any]:
        found = OrderedDict(self.mapping(raw))
        # Of a state dict: the versions of the modules.
        versions = raw.state.get('_metadata') if isinstance(raw.state, dict) else None
        if isinstance(versions, dict):
            found._metadata = self.value(versions)  # type: ignore[attr-defined]
        return found

    def _hashed(self, raw: Any) -> Any:
        value = self.value(raw)
        try:
            hash(value)
        except TypeError:
            raise ReadingError(f'a key that is a {type(value).__name__}') from None
        return value


_BUILDERS: dict[type[Any], Callable[[_Walk, Any], Any]] = {
    dict: _Walk.mapping,
    OrderedItems: _Walk.ordered,
    list: lambda walk, raw: [walk.value(value) for value in raw],
    tuple: lambda walk, raw: tuple(walk.value(value) for value in raw),
    set: lambda walk, raw: {walk._hashed(value) for value in raw},
    frozenset: lambda walk, raw: frozenset(walk._hashed(value) for value in raw),
    PendingObject: _Walk.made,
}
