"""What a plan file says is looked at before anything is made of it: types, ranges, sense."""

from __future__ import annotations

from typing import Any

from cdra_mm.errors import PlanError

from .records import Block, Part, Positions, SparseMatrix, Vector

__all__ = [
    'check_keys',
    'read_block',
    'read_count',
    'read_list',
    'read_mapping',
    'read_part',
    'read_positions',
    'read_sparse',
    'read_text',
    'read_vector',
]

LARGEST = (1 << 63) - 1  # what fits into a tensor


def read_block(entry: Any, min_rank: int) -> Block:
    """A block, whose rank is at least `min_rank`."""
    check_keys('a block', entry, set(Block.__dataclass_fields__))
    name = read_text(entry, 'name')
    shape = _matrix_shape(entry, name)
    rows = _indices(entry['rows'], shape[0], f'{name}: rows')
    cols = _indices(entry['cols'], shape[1], f'{name}: cols')
    if not rows or not cols:
        raise PlanError(f'{name}: the block has {len(rows)} rows and {len(cols)} columns')
    rank = read_count(entry['rank'], f'{name}: rank', min_rank)
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


def read_sparse(entry: Any) -> SparseMatrix:
    """Single entries of a matrix."""
    check_keys('a sparse matrix', entry, set(SparseMatrix.__dataclass_fields__))
    name = read_text(entry, 'name')
    shape = _matrix_shape(entry, name)
    indices = _indices(entry['indices'], shape[0] * shape[1], f'{name}: indices')
    if not indices:
        raise PlanError(f'{name}: indices is empty: expected at least one index')
    return SparseMatrix(name, shape, indices)


def read_part(entry: Any) -> Part:
    """A part of another kind."""
    check_keys('a part', entry, set(Part.__dataclass_fields__))
    name, sizes = read_text(entry, 'name'), read_mapping(entry, 'sizes')
    count = read_count(entry['num_params'], f'{name}: num_params', 1)
    for key, value in sizes.items():
        if not isinstance(value, str):
            size = _number(value, f'{name}: {key}')
            # Or a few characters would ask for any amount of memory.
            if size > count:
                raise PlanError(f'{name}: {key} is {size}: expected at most num_params, {count}')
    return Part(name, read_text(entry, 'kind'), sizes, count)


def _matrix_shape(entry: dict[str, Any], name: str) -> tuple[int, int]:
    shape = tuple(read_count(n, f'{name}: shape', 1) for n in read_list(entry, 'shape'))
    if len(shape) != 2:
        raise PlanError(f'{name}: shape {shape} is not (rows, columns)')
    return shape[0], shape[1]


def read_vector(entry: Any) -> Vector:
    """A vector."""
    check_keys('a vector', entry, set(Vector.__dataclass_fields__))
    name = read_text(entry, 'name')
    length = read_count(entry['length'], f'{name}: length', 1)
    indices = entry['indices']
    if indices is not None:
        indices = _indices(indices, length, f'{name}: indices')
        if not indices:
            raise PlanError(f'{name}: indices is empty: expected null or at least one index')
    count = _selected(entry, name, length)
    return Vector(name, length, indices, count)


def read_positions(record: dict[str, Any]) -> Positions:
    """The positions of a plan."""
    entry = read_mapping(record, 'positions')
    check_keys('positions', entry, set(Positions.__dataclass_fields__))
    layers, roles = read_list(entry, 'layers'), read_mapping(entry, 'roles')
    if not all(isinstance(text, str) for text in (*layers, *roles.values())):
        raise PlanError('positions: expected the paths of layers, and roles by name, as texts')
    return Positions(tuple(layers), roles)


def _selected(entry: dict[str, Any], name: str, size: int) -> int:
    count = read_count(entry['num_sensitive'], f'{name}: num_sensitive', 0)
    if count > size:
        raise PlanError(f'{name}: num_sensitive is {count}: expected at most {size}')
    return count


def check_keys(what: str, record: Any, expected: set[str]) -> None:
    """Refuses a record that has other keys than those expected."""
    if not isinstance(record, dict) or set(record) != expected:
        given = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise PlanError(f'{what} has the keys {given}: expected {sorted(expected)}')


def read_text(record: dict[str, Any], key: str) -> str:
    """A text of a record."""
    if not isinstance(record[key], str):
        raise PlanError(f'{key} is {record[key]!r}: expected text')
    return str(record[key])


def read_list(record: dict[str, Any], key: str) -> list[Any]:
    """A list of a record."""
    if not isinstance(record[key], list):
        raise PlanError(f'{key} is a {type(record[key]).__name__}: expected a list')
    return list(record[key])


def read_mapping(record: dict[str, Any], key: str) -> dict[str, Any]:
    """An object of a record."""
    if not isinstance(record[key], dict):
        raise PlanError(f'{key} is a {type(record[key]).__name__}: expected an object')
    return dict(record[key])


def read_count(value: Any, what: str, least: int) -> int:
    """A whole number of at least `least` that fits into a tensor."""
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
    indices = tuple(read_count(value, what, 0) for value in values)
    if indices and max(indices) >= size or len(set(indices)) != len(indices):
        raise PlanError(f'{what}: expected different indices below {size}')
    return indices
