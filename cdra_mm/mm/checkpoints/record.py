"""Checkpoints that hold what is trained and name what is not.

A run's checkpoint leaves out the backbone weights that a named base brings back
bit for bit. A *record* in the state dict says what was planned, where the base
came from, and has a digest of each weight and buffer that was left out. It is a
uint8 tensor of JSON text: state dicts are all that inference APIs hand to a model,
and ``weights_only`` loading takes tensors.

Buffers that have changed in training (statistics of batch norms) are never left out.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.core import Plan, base_state, digests_of, fingerprint_of
from cdra_mm.core.model.digests import (
    base_buffers,
    differences,
    fingerprint_of_digests,
    list_differences,
)
from cdra_mm.errors import CheckpointError
from cdra_mm.storage.strict_json import strict_json

from .base_weights import BaseSource

__all__ = [
    'RECORD_KEY',
    'Record',
    'base_state',
    'make_record',
    'read_record',
    'record_of',
    'relied_on',
    'slim',
    'stored_names',
    'trained_names',
]

RECORD_KEY = 'cdra_record'
RECORD_VERSION = 2


@dataclass(frozen=True)
class Record:
    """What a checkpoint says of itself.

    Attributes:
        method: Name of the method.
        plan: JSON text of the plan; '' where the whole backbone is trained.
        settings: The hook's settings, plain types.
        base: Where the left-out weights come from; None when all are stored.
        digests: Table of the left-out weights (`digests_of`); of version 1 the names only.
        old_fingerprint: Of version 1: one fingerprint of all of them.
    """

    method: str
    plan: str = ''
    settings: Mapping[str, Any] = field(default_factory=dict)
    base: BaseSource | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    old_fingerprint: str = ''

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the left-out weights and buffers."""
        return tuple(self.digests)

    @property
    def fingerprint(self) -> str:
        """One text for all of the left-out weights, for people; '' where there are none."""
        if self.old_fingerprint or not self.digests:
            return self.old_fingerprint
        return fingerprint_of_digests(self.digests)

    def storing(self, tensors: Mapping[str, Tensor]) -> Record:
        """The record of a state in which those of these tensors that have changed are not left out.

        Args:
            tensors: Of the backbone's own, by name.
        """
        now = digests_of({name: value for name, value in tensors.items() if name in self.digests})
        changed = {name for name, text in now.items() if text != self.digests[name]}
        kept = {name: text for name, text in self.digests.items() if name not in changed}
        return replace(self, digests=kept) if changed else self

    def held_by(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a backbone's state has the base that was left out; ends where it does not."""
        if self.old_fingerprint:
            held = fingerprint_of({name: state[name] for name in self.digests})
            return held == self.old_fingerprint
        return next(differences(state, self.digests), None) is None

    def differing(self, state: Mapping[str, Tensor]) -> str:
        """What of a backbone's state is not the base that was left out, for messages."""
        if self.old_fingerprint:
            return 'other weights'
        return list_differences(list(differences(state, self.digests)))

    def to_tensor(self) -> Tensor:
        """The record as uint8 text."""
        entries = asdict(self)
        del entries['old_fingerprint']
        text = json.dumps({**entries, 'version': RECORD_VERSION}, separators=(',', ':')).encode()
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Record:
        """Reads `to_tensor`.

        Raises:
            CheckpointError: If it is damaged or of another version.
        """
        try:
            text = isinstance(tensor, Tensor) and tensor.dtype == torch.uint8 and tensor.dim() == 1
            if not text:
                raise ValueError('it is no text')
            entries = strict_json(bytes(tensor.cpu().tolist()))
            version = entries.pop('version')
            if version not in (1, RECORD_VERSION):
                raise CheckpointError(
                    f'the checkpoint has record version {version!r:.80}: this release reads '
                    f'versions up to {RECORD_VERSION}; use the release that wrote it'
                )
            if version == 1:
                entries['digests'] = dict.fromkeys(entries.pop('left_out'), '')
                entries['old_fingerprint'] = entries.pop('fingerprint')
            base = entries['base']
            entries['base'] = BaseSource(**base) if base else None
            record = cls(**entries)
            record._check_types()
            return record
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f'the record of the checkpoint is damaged ({type(error).__name__}: {error}): use '
                'another checkpoint'
            ) from None

    def _check_types(self) -> None:
        texts = (self.method, self.plan, self.old_fingerprint)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError('method, plan and fingerprint are texts')
        if not isinstance(self.settings, dict) or not isinstance(self.digests, dict):
            raise TypeError('settings and digests are objects')
        if not all(isinstance(text, str) for text in self.digests.values()):
            raise TypeError('digests are texts')
        if self.digests and self.base is None:
            raise TypeError('it leaves weights out and names no base')

    def read_plan(self) -> Plan | None:
        """The plan, or None where the whole backbone is trained."""
        return Plan.from_json(self.plan) if self.plan else None


def read_record(state_dict: Mapping[str, Tensor], prefix: str) -> Record | None:
    """The record of a state dict, or None where it has none."""
    tensor = state_dict.get(prefix + RECORD_KEY)
    return None if tensor is None else Record.from_tensor(tensor)


def record_of(backbone: nn.Module) -> Record | None:
    """The record of the checkpoint that a backbone was loaded from, or None."""
    record: Record | None = backbone.__dict__.get('_cdra_record')
    return record


def trained_names(backbone: nn.Module) -> set[str]:
    """Names of the backbone's own parameters that are trained."""
    state = base_state(backbone)
    return {name for name, p in backbone.named_parameters() if p.requires_grad and name in state}


def stored_names(backbone: nn.Module, record: Record) -> set[str]:
    """Names of the backbone's own weights and buffers that its checkpoints store."""
    left_out = record.storing(base_buffers(backbone)).digests
    return set(base_state(backbone)) - left_out.keys()


def relied_on(backbone: nn.Module, record: Record | None) -> dict[str, Any]:
    """What `save_adapter` is told of a base: what the file relies on, and what it carries.

    Empty where no base is named: then it relies on all that has not changed.
    """
    if record is None or not record.left_out:
        return {}
    return {'digests': record.digests, 'carry': stored_names(backbone, record)}


def slim(
    state_dict: MutableMapping[str, Tensor],
    prefix: str,
    record: Record,
    buffers: Collection[str] = (),
) -> None:
    """Takes the left-out weights out of a state dict and puts the record in.

    Args:
        state_dict: Changed in place.
        prefix: Prefix of the backbone's keys.
        record: The record of the run.
        buffers: Names of the backbone's buffers: those that have changed stay in.
    """
    present = [name for name in buffers if prefix + name in state_dict]
    record = record.storing({name: state_dict[prefix + name] for name in present})
    for name in record.left_out:
        state_dict.pop(prefix + name, None)
    state_dict[prefix + RECORD_KEY] = record.to_tensor()


def make_record(
    backbone: nn.Module,
    *,
    method: str,
    plan: Plan | None,
    settings: Mapping[str, Any],
    base: BaseSource | None,
    reproduced: set[str],
    digests: Mapping[str, str],
) -> Record:
    """The record of a run.

    Args:
        backbone: The adapted backbone.
        method: Name of the method.
        plan: Its plan.
        settings: The hook's settings.
        base: Where the base came from, None to store everything.
        reproduced: Names that this base brings back bit for bit.
        digests: Table of the base.
    """
    left_out: list[str] = []
    if base is not None and plan is not None:
        left_out = sorted((reproduced & digests.keys()) - trained_names(backbone))
    return Record(
        method=method,
        plan=plan.to_json() if plan else '',
        settings=dict(settings),
        base=base if left_out else None,
        digests={name: digests[name] for name in left_out},
    )
