"""The record of what is adapted: where, with what rank, and why.

A `Plan` is plain data. It imports nothing of ours but the errors, goes to JSON
and back without loss, and is all that is needed to rebuild an adapted model on
the same base weights.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cdra_mm.errors import PlanError
from cdra_mm.storage.strict_json import strict_json

__all__ = ['PLAN_VERSION', 'Block', 'Part', 'Plan', 'SparseMatrix', 'Vector']

PLAN_VERSION = 2
LARGEST = (1 << 63) - 1  # what fits into a tensor


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
        scale: Factor of the update (LoRA's alpha / r; CDRA has none).
        dropout: Probability with which the adapter's input is dropped in training.
    """

    name: str
    shape: tuple[int, int]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    rank: int
    num_sensitive: int
    scale: float = 1.0
    dropout: float = 0.0

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
class SparseMatrix:
    """A matrix of which single entries are trained (SPT's unstructured part, GPS).

    Attributes:
        name: Target name.
        shape: ``(O, I)`` of the target.
        indices: Trained entries, positions in the flattened target.
    """

    name: str
    shape: tuple[int, int]
    indices: tuple[int, ...]

    @property
    def num_params(self) -> int:
        """Trainable parameters."""
        return len(self.indices)


@dataclass(frozen=True)
class Part:
    """A trained part of another kind that is put on the model.

    Attributes:
        name: ``<module path>.<kind>``, or the target's name for a change of a weight.
        kind: Its kind, see `core.adapter`.
        sizes: What the kind is built with; plain numbers and texts.
        num_params: Trainable parameters.
    """

    name: str
    kind: str
    sizes: Mapping[str, Any]
    num_params: int


@dataclass(frozen=True)
class Plan:
    """What a method trains of a backbone.

    Attributes:
        method: Name of the method that made it.
        blocks: Adapted matrices.
        vectors: Trained vectors.
        sparse: Matrices of which single entries are trained.
        parts: Trained parts of other kinds.
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
    sparse: tuple[SparseMatrix, ...] = ()
    parts: tuple[Part, ...] = ()
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
        records: tuple[Block | Vector | SparseMatrix | Part, ...]
        records = (*self.blocks, *self.vectors, *self.sparse, *self.parts)
        return sum(r.num_params for r in records) + sum(self.also_train.values())

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
            record = strict_json(text)
        except ValueError as error:
            raise PlanError(
                f'the plan is not JSON ({error}): expected what to_json wrote'
            ) from None
        if not isinstance(record, dict):
            raise PlanError(f'the plan is a {type(record).__name__}: expected a JSON object')
        version = record.get('version')
        if version != PLAN_VERSION or not isinstance(version, int):
            raise PlanError(
                f'the plan has version {version!r}: this release reads version '
                f'{PLAN_VERSION}; make the plan anew or install the release that wrote it'
            )
        _check_keys('the plan', record, set(cls.__dataclass_fields__))
        plan = cls(
            method=_text(record, 'method'),
            blocks=tuple(_block(entry, 1) for entry in _list(record, 'blocks')),
            vectors=tuple(_vector(entry) for entry in _list(record, 'vectors')),
            sparse=tuple(_sparse(entry) for entry in _list(record, 'sparse')),
            parts=tuple(_part(entry) for entry in _list(record, 'parts')),
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
        records: tuple[Block | Vector | SparseMatrix | Part, ...]
        records = (*plan.blocks, *plan.dropped, *plan.vectors, *plan.sparse, *plan.parts)
        names = Counter([*(record.name for record in records), *plan.also_train])
        twice = sorted(name for name, count in names.items() if count > 1)
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
    shape = _matrix_shape(entry, name)
    rows = _indices(entry['rows'], shape[0], f'{name}: rows')
    cols = _indices(entry['cols'], shape[1], f'{name}: cols')
    if not rows or not cols:
        raise PlanError(f'{name}: the block has {len(rows)} rows and {len(cols)} columns')
    rank = _count(entry['rank'], f'{name}: rank', min_rank)
    if rank > min(len(rows), len(cols)):
        raise PlanError(f'{name}: rank {rank} exceeds the block of {len(rows)} x {len(cols)}')
    count = _selected(entry, name, shape[0] * shape[1])
    scale = _number(entry['scale'], f'{name}: scale')
    dropout = _number(entry['dropout'], f'{name}: dropout')
    if not scale > 0:
        raise PlanError(f'{name}: scale is {scale}: expected a number above 0')
    if not 0 <= dropout < 1:
        raise PlanError(f'{name}: dropout is {dropout}: expected a share in [0, 1)')
    return Block(name, shape, rows, cols, rank, count, scale, dropout)


def _sparse(entry: Any) -> SparseMatrix:
    _check_keys('a sparse matrix', entry, set(SparseMatrix.__dataclass_fields__))
    name = _text(entry, 'name')
    shape = _matrix_shape(entry, name)
    indices = _indices(entry['indices'], shape[0] * shape[1], f'{name}: indices')
    if not indices:
        raise PlanError(f'{name}: indices is empty: expected at least one index')
    return SparseMatrix(name, shape, indices)


def _part(entry: Any) -> Part:
    _check_keys('a part', entry, set(Part.__dataclass_fields__))
    name, sizes = _text(entry, 'name'), _mapping(entry, 'sizes')
    count = _count(entry['num_params'], f'{name}: num_params', 1)
    for key, value in sizes.items():
        if not isinstance(value, str):
            size = _number(value, f'{name}: {key}')
            # Or a few characters would ask for any amount of memory.
            if size > count:
                raise PlanError(f'{name}: {key} is {size}: expected at most num_params, {count}')
    return Part(name, _text(entry, 'kind'), sizes, count)


def _matrix_shape(entry: dict[str, Any], name: str) -> tuple[int, int]:
    shape = tuple(_count(n, f'{name}: shape', 1) for n in _list(entry, 'shape'))
    if len(shape) != 2:
        raise PlanError(f'{name}: shape {shape} is not (rows, columns)')
    return shape[0], shape[1]


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
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise PlanError(f'{what} is {value!r:.80}: expected an integer of at least {least}')
    return value


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
        raise PlanError(f'{what} is {value!r:.80}: expected a number')
    return value


def _indices(values: Any, size: int, what: str) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise PlanError(f'{what} is a {type(values).__name__}: expected a list')
    indices = tuple(_count(value, what, 0) for value in values)
    if indices and max(indices) >= size or len(set(indices)) != len(indices):
        raise PlanError(f'{what}: expected different indices below {size}')
    return indices
