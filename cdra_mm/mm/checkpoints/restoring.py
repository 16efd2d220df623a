"""A backbone is made ready for a checkpoint that holds what is trained and names the rest.

In this order: the base that the record names is made sure of, the adapters are built by the plan,
the base is quantised where the run's was, and filled in. A base that cannot be found is an error,
never a random backbone.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import replace

from mmengine.logging import MMLogger
from torch import Tensor, nn

import cdra_mm.methods  # noqa: F401  the kinds of adapters that plans name
from cdra_mm.core import base_state, build_adapters, digests_of, plan_of
from cdra_mm.core.artifacts.old_formats import drop_repeated
from cdra_mm.core.model.own_state import PLAN_KEY, base_buffers
from cdra_mm.errors import CheckpointError

from .base_weights import is_replaying, load_base
from .keys import KEYS
from .record import RECORD_VERSION, Record, read_record, record_of
from .small_base import make_small

__all__ = ['ensure_base', 'restore']


def restore(backbone: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str) -> None:
    """Makes a backbone ready for a state dict, and the state dict complete for it.

    Builds the adapters of its plan, makes sure of the base weights and
    fills them in, so that even a strict load finds every key. A state dict
    without record and adapters is left alone. Averaged weights have no record: they come to a
    backbone that has adopted the one of their checkpoint.

    Args:
        backbone: The plain backbone, or one with exactly these adapters.
        state_dict: Changed in place: the record is taken out.
        prefix: Prefix of the backbone's keys.

    Raises:
        CheckpointError: If the adapters do not fit the backbone, or the base
            weights cannot be found.
    """
    record = read_record(state_dict, prefix)
    if is_replaying(backbone):
        if record is not None or prefix + PLAN_KEY in state_dict:
            raise CheckpointError(
                'it is a checkpoint with adapters, which is no base of another one'
            )
        return
    if record is None:
        built = build_adapters(backbone, state_dict, prefix)
        record = record_of(backbone) if plan_of(backbone) is not None else None
        if not built and record is None:
            return
    else:
        if record.version != RECORD_VERSION and record.plan is not None:
            drop_repeated(state_dict, prefix, record.plan)
        _check_complete(backbone, state_dict, prefix, record)
        if backbone.__dict__.pop('_cdra_ensured', None) != record:
            record = ensure_base(backbone, record)
        build_adapters(backbone, state_dict, prefix, record.plan)
        backbone.__dict__['_cdra_record'] = record
    for key in KEYS:
        state_dict.pop(prefix + key, None)
    if record is not None:
        make_small(backbone, record)
    held = base_state(backbone)
    for name in record.left_out if record else ():
        state_dict.setdefault(prefix + name, held[name])


def ensure_base(backbone: nn.Module, record: Record) -> Record:
    """Loads the base that a record names unless the backbone holds it.

    Returns:
        The record, with a table of what was left out also where it is of version 1.

    Raises:
        CheckpointError: If no base that may be loaded is the one of the record.
    """
    if not record.left_out:
        return record
    if not record.held_by(base_state(backbone)):
        assert record.base is not None
        named = backbone.__dict__.get('_cdra_bases', ())
        tried = load_base(
            backbone, record.base, lambda: record.held_by(base_state(backbone)), named
        )
        if tried:
            raise CheckpointError(
                'the checkpoint does not store the frozen base weights, and the model does not '
                f'hold them ({record.differing(base_state(backbone))}): they came from '
                f'{record.base.describe()}; {tried}. Put that file there, use the config that the '
                'run has left in its work directory, or write checkpoints with '
                'CDRAHook(save_base=True)'
            )
    return _with_table(backbone, record) if record.old_fingerprint else record


def _with_table(backbone: nn.Module, record: Record) -> Record:
    """A record of version 1 as one of now; the backbone holds the base."""
    buffers = base_buffers(backbone).keys() & set(record.left_out)
    statistics = sorted(n for n in buffers if base_state(backbone)[n].is_floating_point())
    if statistics:
        MMLogger.get_current_instance().warning(
            f'the checkpoint was written by an earlier release, which left {len(statistics)} '
            f'buffers out (the first is {statistics[0]}): where training has changed them, as it '
            'does with the statistics of batch norms, they are those of the base again'
        )
    state = base_state(backbone)
    table = digests_of({name: state[name] for name in record.left_out})
    return replace(record, digests=table, old_fingerprint='')


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
