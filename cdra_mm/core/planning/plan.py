"""The record of what is adapted: where, with what rank, and why.

A `Plan` is plain data. It goes to JSON and back without loss, and is all that is needed to rebuild
an adapted model on the same base weights.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cdra_mm.errors import PlanError
from cdra_mm.storage.strict_json import strict_json

from .plan_checks import (
    check_keys,
    read_block,
    read_count,
    read_list,
    read_mapping,
    read_part,
    read_positions,
    read_sparse,
    read_text,
    read_vector,
)
from .records import Block, Part, Positions, SparseMatrix, Vector, plain_of

__all__ = ['PLAN_VERSION', 'Block', 'Part', 'Plan', 'SparseMatrix', 'Vector']

PLAN_VERSION = 2


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
        fingerprint: Short digests of the base weights that compete, '' if unknown.
        positions: The layers of the backbone and the roles of its targets; None if unknown, as in
            plans of earlier releases and in those that were made without a model.
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
    positions: Positions | None = None
    version: int = PLAN_VERSION

    @property
    def num_trainable(self) -> int:
        """Trainable parameters of the backbone."""
        records: tuple[Block | Vector | SparseMatrix | Part, ...]
        records = (*self.blocks, *self.vectors, *self.sparse, *self.parts)
        return sum(r.num_params for r in records) + sum(self.also_train.values())

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives an equal plan back."""
        return json.dumps(self.to_record())

    def to_record(self) -> dict[str, Any]:
        """The plan as plain values; `from_record` gives an equal plan back."""
        record = {key: plain_of(value) for key, value in vars(self).items()}
        if self.positions is None:
            del record['positions']
        return record

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
        return cls.from_record(record)

    @classmethod
    def from_record(cls, record: Any) -> Plan:
        """A plan from plain values: what `from_json` finds in a text.

        Raises:
            PlanError: See `from_json`.
        """
        if not isinstance(record, dict):
            raise PlanError(f'the plan is a {type(record).__name__}: expected a JSON object')
        version = record.get('version')
        if version != PLAN_VERSION or not isinstance(version, int):
            raise PlanError(
                f'the plan has version {version!r}: this release reads version '
                f'{PLAN_VERSION}; make the plan anew or install the release that wrote it'
            )
        known = set(cls.__dataclass_fields__)
        check_keys('the plan', record, known if 'positions' in record else known - {'positions'})
        plan = cls(
            method=read_text(record, 'method'),
            blocks=tuple(read_block(entry, 1) for entry in read_list(record, 'blocks')),
            vectors=tuple(read_vector(entry) for entry in read_list(record, 'vectors')),
            sparse=tuple(read_sparse(entry) for entry in read_list(record, 'sparse')),
            parts=tuple(read_part(entry) for entry in read_list(record, 'parts')),
            also_train={
                key: read_count(value, f'also_train[{key}]', 0)
                for key, value in read_mapping(record, 'also_train').items()
            },
            dropped=tuple(read_block(entry, 0) for entry in read_list(record, 'dropped')),
            num_competing=read_count(record['num_competing'], 'num_competing', 0),
            num_sensitive=read_count(record['num_sensitive'], 'num_sensitive', 0),
            settings=read_mapping(record, 'settings'),
            fingerprint=read_text(record, 'fingerprint'),
            positions=read_positions(record) if 'positions' in record else None,
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
