"""The record of what is adapted: where, with what rank, and why.

A `Plan` is plain data. It imports nothing of ours but the errors, goes to JSON
and back without loss, and is all that is needed to rebuild an adapted model on
the same base weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import PlanError

__all__ = ['PLAN_VERSION', 'Block', 'Plan', 'Vector']

PLAN_VERSION = 1


@dataclass(frozen=True)
class Block:
    """A matrix and its compact block (Eq. 4) with its rank (Eq. 7).

    Attributes:
        name: Target name.
        shape: ``(O, I)`` of the target.
        rows: Row indices of the block in the target, most selected first.
        cols: Column indices, likewise.
        rank: Rank of the adapter; 0 in `Plan.dropped`.
        num_sensitive: Selected entries.
    """

    name: str
    shape: tuple[int, int]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    rank: int
    num_sensitive: int

    @property
    def num_params(self) -> int:
        """Trainable parameters of the adapter, ``r (|R| + |C|)``."""
        return self.rank * (len(self.rows) + len(self.cols))

    @property
    def density(self) -> float:
        """Selected entries over entries of the block."""
        return self.num_sensitive / (len(self.rows) * len(self.cols))


@dataclass(frozen=True)
class Vector:
    """A bias, norm weight or layer scale that is trained.

    Attributes:
        name: Target name.
        length: Number of entries.
        indices: Entries that are trained; None trains the whole vector.
        num_sensitive: Selected entries.
    """

    name: str
    length: int
    indices: tuple[int, ...] | None
    num_sensitive: int

    @property
    def num_params(self) -> int:
        """Trainable parameters."""
        return self.length if self.indices is None else len(self.indices)


@dataclass(frozen=True)
class Plan:
    """What a method trains of a backbone.

    Attributes:
        method: Name of the method that made it.
        blocks: Adapted matrices.
        vectors: Trained vectors.
        also_train: Parameters trained whole without competing, name -> entries.
        dropped: Matrices with selected entries whose rank is 0: they stay frozen.
        num_competing: Entries that competed.
        num_sensitive: Entries that were selected.
        settings: How the plan was made; plain types only.
        fingerprint: Fingerprint of the base weights, '' if unknown.
        version: Version of this format.
    """

    method: str = 'cdra'
    blocks: tuple[Block, ...] = ()
    vectors: tuple[Vector, ...] = ()
    also_train: Mapping[str, int] = field(default_factory=dict)
    dropped: tuple[Block, ...] = ()
    num_competing: int = 0
    num_sensitive: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ''
    version: int = PLAN_VERSION

    @property
    def num_trainable(self) -> int:
        """Trainable parameters of the backbone."""
        adapted = sum(block.num_params for block in self.blocks)
        return adapted + sum(v.num_params for v in self.vectors) + sum(self.also_train.values())

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives an equal plan back."""
        record = asdict(self)
        record['also_train'], record['settings'] = dict(self.also_train), dict(self.settings)
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads what `to_json` wrote.

        Raises:
            PlanError: If the text is not a plan of this version, or a plan that
                contradicts itself.
        """
        try:
            record = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise PlanError(
                f'the plan is not JSON ({error}): expected what to_json wrote'
            ) from None
        if not isinstance(record, dict):
            raise PlanError(f'the plan is a {type(record).__name__}: expected a JSON object')
        if record.get('version') != PLAN_VERSION:
            raise PlanError(
                f'the plan has version {record.get("version")!r}: this release reads version '
                f'{PLAN_VERSION}; make the plan anew or install the release that wrote it'
            )
        _check_keys('the plan', record, set(cls.__dataclass_fields__))
        plan = cls(
            method=_text(record, 'method'),
            blocks=tuple(_block(entry, 1) for entry in _list(record, 'blocks')),
            vectors=tuple(_vector(entry) for entry in _list(record, 'vectors')),
            also_train={
                key: _count(value, f'also_train[{key}]', 0)
                for key, value in _mapping(record, 'also_train').items()
            },
            dropped=tuple(_block(entry, 0) for entry in _list(record, 'dropped')),
            num_competing=_count(record['num_competing'], 'num_competing', 0),
            num_sensitive=_count(record['num_sensitive'], 'num_sensitive', 0),
            settings=_mapping(record, 'settings'),
            fingerprint=_text(record, 'fingerprint'),
        )
        blocks = (*plan.blocks, *plan.dropped)
        names = [*(b.name for b in blocks), *(v.name for v in plan.vectors), *plan.also_train]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PlanError(f'{twice[0]} is in the plan twice: expected each name once')
        if plan.num_sensitive > plan.num_competing:
            raise PlanError(
                f'num_sensitive is {plan.num_sensitive}: expected at most num_competing, '
                f'{plan.num_competing}'
            )
        return plan


def _block(entry: Any, min_rank: int) -> Block:
    _check_keys('a block', entry, set(Block.__dataclass_fields__))
    name = _text(entry, 'name')
    shape = tuple(_count(n, f'{name}: shape', 1) for n in _list(entry, 'shape'))
    if len(shape) != 2:
        raise PlanError(f'{name}: shape {shape} is not (rows, columns)')
    rows = _indices(entry['rows'], shape[0], f'{name}: rows')
    cols = _indices(entry['cols'], shape[1], f'{name}: cols')
    if not rows or not cols:
        raise PlanError(f'{name}: the block has {len(rows)} rows and {len(cols)} columns')
    rank = _count(entry['rank'], f'{name}: rank', min_rank)
    if rank > min(len(rows), len(cols)):
        raise PlanError(f'{name}: rank {rank} exceeds the block of {len(rows)} x {len(cols)}')
    count = _selected(entry, name, shape[0] * shape[1])
    return Block(name, (shape[0], shape[1]), rows, cols, rank, count)


def _vector(entry: Any) -> Vector:
    _check_keys('a vector', entry, set(Vector.__dataclass_fields__))
    name = _text(entry, 'name')
    length = _count(entry['length'], f'{name}: length', 1)
    indices = entry['indices']
    if indices is not None:
        indices = _indices(indices, length, f'{name}: indices')
        if not indices:
            raise PlanError(f'{name}: indices is empty: expected null or at least one index')
    count = _selected(entry, name, length)
    return Vector(name, length, indices, count)


def _selected(entry: dict[str, Any], name: str, size: int) -> int:
    count = _count(entry['num_sensitive'], f'{name}: num_sensitive', 0)
    if count > size:
        raise PlanError(f'{name}: num_sensitive is {count}: expected at most {size}')
    return count


def _check_keys(what: str, record: Any, expected: set[str]) -> None:
    if not isinstance(record, dict) or set(record) != expected:
        given = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise PlanError(f'{what} has the keys {given}: expected {sorted(expected)}')


def _text(record: dict[str, Any], key: str) -> str:
    if not isinstance(record[key], str):
        raise PlanError(f'{key} is {record[key]!r}: expected text')
    return str(record[key])


def _list(record: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(record[key], list):
        raise PlanError(f'{key} is a {type(record[key]).__name__}: expected a list')
    return list(record[key])


def _mapping(record: dict[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(record[key], dict):
        raise PlanError(f'{key} is a {type(record[key]).__name__}: expected an object')
    return dict(record[key])


def _count(value: Any, what: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PlanError(f'{what} is {value!r}: expected an integer of at least {least}')
    return value


def _indices(values: Any, size: int, what: str) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise PlanError(f'{what} is a {type(values).__name__}: expected a list')
    indices = tuple(_count(value, what, 0) for value in values)
    if indices and max(indices) >= size or len(set(indices)) != len(indices):
        raise PlanError(f'{what}: expected different indices below {size}')
    return indices
