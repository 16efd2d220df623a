"""Checkpoints that hold what is trained and name what is not.

A run's checkpoint leaves out the backbone weights that a named base brings back
bit for bit. A *record* in the state dict says what was planned, where the base
came from and what its fingerprint is. It is a uint8 tensor of JSON text: state
dicts are all that inference APIs hand to a model, and ``weights_only`` loading
takes tensors.

Loading, in this order: the base that the record names is made sure of, the
adapters are built from the keys, and the base is filled in. A base that cannot
be found is an error, never a random backbone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.core import (
    CheckpointError,
    Plan,
    build_adapters,
    fingerprint_of,
)
from cdra_mm.core.state_keys import adapter_prefix

from .base_weights import BaseSource, load_base
from .checked import check_record

__all__ = ['RECORD_KEY', 'Record', 'base_state', 'read_record', 'restore', 'slim', 'trained_names']

RECORD_KEY = 'cdra_record'
RECORD_VERSION = 1


@dataclass(frozen=True)
class Record:
    """What a checkpoint says of itself.

    Attributes:
        method: Name of the method.
        plan: JSON text of the plan; '' where the whole backbone is trained.
        settings: The hook's settings, plain types.
        base: Where the left-out weights come from; None when all are stored.
        fingerprint: Fingerprint of the left-out weights.
        left_out: Names of the left-out weights.
    """

    method: str
    plan: str = ''
    settings: Mapping[str, Any] = field(default_factory=dict)
    base: BaseSource | None = None
    fingerprint: str = ''
    left_out: tuple[str, ...] = ()
    version: int = RECORD_VERSION

    def to_tensor(self) -> Tensor:
        """The record as uint8 text."""
        text = json.dumps(asdict(self), separators=(',', ':')).encode()
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Record:
        """Reads `to_tensor`.

        Raises:
            CheckpointError: If it is damaged or of another version.
        """
        try:
            entries = check_record(tensor)
            if entries['version'] != RECORD_VERSION:
                raise CheckpointError(
                    f'the checkpoint has record version {entries["version"]}: this release reads '
                    f'version {RECORD_VERSION}; use the release that wrote it'
                )
            entries['base'] = BaseSource(**entries['base']) if entries['base'] else None
            entries['left_out'] = tuple(entries['left_out'])
            return cls(**entries)
        except CheckpointError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f'the record of the checkpoint is damaged ({type(error).__name__}: {error}): use '
                'another checkpoint'
            ) from None

    def read_plan(self) -> Plan | None:
        """The plan, or None where the whole backbone is trained."""
        return Plan.from_json(self.plan) if self.plan else None


def read_record(state_dict: Mapping[str, Tensor], prefix: str) -> Record | None:
    """The record of a state dict, or None where it has none."""
    tensor = state_dict.get(prefix + RECORD_KEY)
    return None if tensor is None else Record.from_tensor(tensor)


def base_state(backbone: nn.Module) -> dict[str, Tensor]:
    """The backbone's state dict without adapters."""
    own = {f'{path}.' for path, module in backbone.named_modules() if path.split('.')[-1] == 'cdra'}
    return {
        key: value
        for key, value in backbone.state_dict().items()
        if not any(key.startswith(prefix) for prefix in own)
    }


def trained_names(backbone: nn.Module) -> set[str]:
    """Names of the backbone's own parameters that are trained."""
    state = base_state(backbone)
    return {name for name, p in backbone.named_parameters() if p.requires_grad and name in state}


def slim(state_dict: MutableMapping[str, Tensor], prefix: str, record: Record) -> None:
    """Takes the left-out weights out of a state dict and puts the record in."""
    for name in record.left_out:
        state_dict.pop(prefix + name, None)
    state_dict[prefix + RECORD_KEY] = record.to_tensor()


def restore(backbone: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str) -> None:
    """Makes a backbone ready for a state dict, and the state dict complete for it.

    Builds the adapters that the keys name, makes sure of the base weights and
    fills them in, so that even a strict load finds every key. A state dict
    without record and adapters is left alone.

    Args:
        backbone: The plain backbone, or one with exactly these adapters.
        state_dict: Changed in place: the record is taken out.
        prefix: Prefix of the backbone's keys.

    Raises:
        CheckpointError: If the adapters do not fit the backbone, or the base
            weights cannot be found.
    """
    record = read_record(state_dict, prefix)
    state_dict.pop(prefix + RECORD_KEY, None)
    if record is None:
        if not build_adapters(backbone, state_dict, prefix):
            return
    else:
        _check_complete(backbone, state_dict, prefix, record)
        ensure_base(backbone, record)
        build_adapters(backbone, state_dict, prefix)
        backbone.__dict__['_cdra_record'] = record
    held = base_state(backbone)
    for name in record.left_out if record else ():
        state_dict.setdefault(prefix + name, held[name])


def ensure_base(backbone: nn.Module, record: Record) -> None:
    """Loads the base that a record names unless the backbone holds it.

    Raises:
        CheckpointError: If neither gives the fingerprint of the record.
    """
    if not record.left_out or _holds(backbone, record):
        return
    assert record.base is not None
    tried = load_base(backbone, record.base, lambda: _holds(backbone, record))
    if tried:
        raise CheckpointError(
            'the checkpoint does not store the frozen base weights, and the model does not hold '
            f'them: they came from {record.base.describe()} (fingerprint '
            f'{record.fingerprint[:12]}); {tried}. Put that file there, use the config that the '
            'checkpoint was trained with, or write checkpoints with CDRAHook(save_base=True)'
        )


def _holds(backbone: nn.Module, record: Record) -> bool:
    state = base_state(backbone)
    return fingerprint_of({name: state[name] for name in record.left_out}) == record.fingerprint


def _check_complete(
    backbone: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, record: Record
) -> None:
    state = base_state(backbone)
    foreign = [name for name in record.left_out if name not in state]
    missing = [
        name for name in state if prefix + name not in state_dict and name not in record.left_out
    ]
    if foreign or missing:
        raise CheckpointError(
            f'the checkpoint does not fit {type(backbone).__name__}: '
            + (f'it was made for a backbone with {foreign[0]}' if foreign else '')
            + (f'it lacks {missing[0]}' if missing and not foreign else '')
            + f' ({len(foreign) + len(missing)} names differ); use the config it was trained with'
        )
    plan = record.read_plan()
    if plan is not None:
        carried = (*plan.blocks, *plan.sparse, *plan.parts)
        names = {record.name for record in carried}
        names |= {vector.name for vector in plan.vectors if vector.indices is not None}
        keys = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
        for name in sorted(names):
            if not any(key.startswith(adapter_prefix(name)) for key in keys):
                raise CheckpointError(f'the checkpoint is damaged: it lacks the adapter of {name}')


def make_record(
    backbone: nn.Module,
    *,
    method: str,
    plan: Plan | None,
    settings: Mapping[str, Any],
    base: BaseSource | None,
    reproduced: set[str],
) -> Record:
    """The record of a run.

    Args:
        backbone: The adapted backbone.
        method: Name of the method.
        plan: Its plan.
        settings: The hook's settings.
        base: Where the base came from, None to store everything.
        reproduced: Names that this base brings back bit for bit.
    """
    state = base_state(backbone)
    left_out: tuple[str, ...] = ()
    if base is not None and plan is not None:
        left_out = tuple(sorted(reproduced - trained_names(backbone)))
    return Record(
        method=method,
        plan=plan.to_json() if plan else '',
        settings=dict(settings),
        base=base if left_out else None,
        fingerprint=fingerprint_of({name: state[name] for name in left_out}) if left_out else '',
        left_out=left_out,
    )
