"""Checkpoints that hold what is trained and name what is not.

A run's checkpoint leaves out the backbone weights that a named base brings back
bit for bit. A *record* in the state dict says what was planned, where the base
came from, and has a digest of each weight and buffer that was left out. State dicts are all
that inference APIs hand to a model, and ``weights_only`` loading takes tensors, so it is three of
uint8, once in a checkpoint, of which an adapter file has the first two:

cdra_plan       the plan (`core.planning.packed_plan`)
cdra_digests    the table of what was left out (`core.model.digests`)
cdra_record     JSON text: version, method, settings, base

Buffers that have changed in training (statistics of batch norms) are never left out. Averaged
weights (EMA) are stored as the weights are, without a record of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.core import Plan, base_state, digests_of, fingerprint_of
from cdra_mm.core.model.digests import (
    DIGESTS_KEY,
    differences,
    list_differences,
    pack_digests,
    unpack_digests,
)
from cdra_mm.core.model.own_state import PLAN_KEY, base_buffers
from cdra_mm.core.planning.packed_plan import pack_plan, unpack_plan
from cdra_mm.errors import CheckpointError
from cdra_mm.storage.strict_json import strict_json

from .base_source import BaseSource
from .keys import AVERAGED, KEYS, RECORD_KEY

__all__ = [
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

RECORD_VERSION = 3


@dataclass(frozen=True)
class Record:
    """What a checkpoint says of itself.

    Attributes:
        method: Name of the method.
        plan: The plan; None where the whole backbone is trained.
        settings: The hook's settings, plain types.
        base: Where the left-out weights come from; None when all are stored.
        digests: Table of the left-out weights (`digests_of`); of version 1 the names only.
        old_fingerprint: Of version 1: one fingerprint of all of them.
        version: Of what it was read from; `restoring` reads states of each.
    """

    method: str
    plan: Plan | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    base: BaseSource | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    old_fingerprint: str = ''
    version: int = RECORD_VERSION

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the left-out weights and buffers."""
        return tuple(self.digests)

    @property
    def fingerprint(self) -> str:
        """One text for all of the left-out weights, for people; '' where there are none."""
        if self.old_fingerprint or not self.digests:
            return self.old_fingerprint
        return hashlib.sha256(json.dumps(sorted(self.digests.items())).encode()).hexdigest()

    def storing(self, tensors: Mapping[str, Tensor]) -> Record:
        """The record of a state that holds those of these tensors that have changed."""
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

    def to_state(self, packed: Tensor | None = None) -> dict[str, Tensor]:
        """The record as entries of a state dict.

        Args:
            packed: The plan as `pack_plan` gives it, where it is known already.
        """
        entries: dict[str, Any] = dict(method=self.method, settings=dict(self.settings))
        entries['base'] = asdict(self.base) if self.base else None
        text = json.dumps({**entries, 'version': RECORD_VERSION}, separators=(',', ':')).encode()
        state = {RECORD_KEY: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        if self.plan is not None:
            state[PLAN_KEY] = pack_plan(self.plan) if packed is None else packed
        return {**state, DIGESTS_KEY: pack_digests(self.digests)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], prefix: str = '') -> Record:
        """Reads `to_state`, and the one tensor that earlier releases had.

        Raises:
            CheckpointError: If it is damaged or of another version.
        """
        try:
            entries = _entries(state[prefix + RECORD_KEY])
            version = entries.get('version')
            if version not in (1, 2, RECORD_VERSION):
                raise CheckpointError(
                    f'the checkpoint has record version {version!r:.80}: this release reads '
                    f'versions up to {RECORD_VERSION}; use the release that wrote it'
                )
            if version == RECORD_VERSION:
                packed = state.get(prefix + PLAN_KEY)
                entries['plan'] = None if packed is None else unpack_plan(packed)
                entries['digests'] = unpack_digests(state[prefix + DIGESTS_KEY])
            else:
                entries['plan'] = Plan.from_json(entries['plan']) if entries['plan'] else None
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
        if not all(isinstance(text, str) for text in (self.method, self.old_fingerprint)):
            raise TypeError('method and fingerprint are texts')
        if not isinstance(self.settings, dict) or not isinstance(self.digests, dict):
            raise TypeError('settings and digests are objects')
        if not all(isinstance(text, str) for text in self.digests.values()):
            raise TypeError('digests are texts')
        if self.digests and self.base is None:
            raise TypeError('it leaves weights out and names no base')


def _entries(tensor: Any) -> dict[str, Any]:
    """The JSON object of a record's own tensor.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ValueError('it is no text')
    entries = strict_json(tensor.cpu().numpy().tobytes())
    if not isinstance(entries, dict):
        raise ValueError('it is no JSON object')
    return entries


def read_record(state_dict: Mapping[str, Tensor], prefix: str) -> Record | None:
    """The record of a state dict, or None where it has none."""
    return Record.from_state(state_dict, prefix) if prefix + RECORD_KEY in state_dict else None


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
    checkpoint: MutableMapping[str, Any],
    prefix: str,
    record: Record,
    buffers: Collection[str] = (),
) -> None:
    """Takes the left-out weights out of a checkpoint's states and puts the record in, once.

    Args:
        checkpoint: Changed in place: its ``state_dict``, and ``ema_state_dict`` where it has one.
        prefix: Prefix of the backbone's keys.
        record: The record of the run.
        buffers: Names of the backbone's buffers: those that have changed in one of the states
            stay in both.
    """
    states = [(checkpoint['state_dict'], prefix)]
    if 'ema_state_dict' in checkpoint:
        states.append((checkpoint['ema_state_dict'], AVERAGED + prefix))
    for state, at in states:
        record = record.storing({n: state[at + n] for n in buffers if at + n in state})
    packed = checkpoint['state_dict'].get(prefix + PLAN_KEY)
    for state, at in states:
        for name in (*record.left_out, *KEYS):
            state.pop(at + name, None)
    entries = record.to_state(packed)
    checkpoint['state_dict'].update({prefix + key: entry for key, entry in entries.items()})


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
        plan=plan,
        settings=dict(settings),
        base=base if left_out else None,
        digests={name: digests[name] for name in left_out},
    )
