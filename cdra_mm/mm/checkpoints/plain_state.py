"""What a checkpoint stores beside tensors, as plain types that this package reads again.

A data set's ``metainfo``, a scheduler's curve, what a hook adds: training goes on with any object
there, and the checkpoint would be refused wherever it is read. So they become plain where the
meaning stays, and a run that stores something else ends before its first iteration.
"""

from __future__ import annotations

import datetime
import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from torch import Tensor

from cdra_mm.errors import CheckpointError
from cdra_mm.reading.allowed_types import ReadingError
from cdra_mm.reading.pickle_machine import run_pickle
from cdra_mm.reading.torch_file import TYPES
from cdra_mm.reading.value_building import MAX_DEPTH, build_values

from ..checkpoint_types import CHECKPOINT_TYPES

__all__ = ['check_can_be_saved', 'make_plain', 'same_meaning']

PLAIN = (str, int, float, bool, type(None), bytes, complex, torch.dtype, torch.Size, torch.device)
MOMENTS = (datetime.datetime, datetime.date, datetime.time)


def check_can_be_saved(runner: Runner) -> None:
    """Refuses a run whose checkpoints could not be read again, before its first iteration.

    Raises:
        CheckpointError: Names the setting that is at fault.
    """
    parts: dict[str, Any] = {'meta': {}, 'message_hub': runner.message_hub.state_dict()}
    dataset: Any = getattr(runner.train_dataloader, 'dataset', None)
    if hasattr(dataset, 'metainfo'):
        parts['meta'] = {'dataset_meta': dataset.metainfo}
    schedulers = runner.param_schedulers or []
    named = schedulers.items() if isinstance(schedulers, Mapping) else [('', schedulers)]
    parts['param_schedulers'] = {
        name: [scheduler.state_dict() for scheduler in several] for name, several in named
    }
    make_plain(parts)


def make_plain(checkpoint: dict[str, Any]) -> None:
    """Makes all but weights and optimizer state of a checkpoint plain, in place.

    Raises:
        CheckpointError: Names the entry that cannot be.
    """
    for part, value in checkpoint.items():
        if part not in ('state_dict', 'ema_state_dict', 'optimizer'):
            checkpoint[part] = _plain(_without_functions(part, value), part, 0)
            _read_back(checkpoint[part], part)


def same_meaning(stored: Any, current: Any) -> bool:
    """Whether a checkpoint holds the plain form of a value."""
    try:
        return _equal(_plain(current, '', 0), _plain(stored, '', 0))
    except CheckpointError:
        return False


def _equal(one: Any, other: Any) -> bool:
    """Equal values of equal types; how they share their parts makes no difference."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, np.ndarray | np.generic | Tensor):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


def _without_functions(part: str, value: Any) -> Any:
    """Schedulers without their curves, which those of the config bring along."""
    if part != 'param_schedulers':
        return value
    if isinstance(value, Mapping):
        return {name: _without_functions(part, several) for name, several in value.items()}
    return [{key: entry for key, entry in state.items() if not callable(entry)} for state in value]


def _plain(value: Any, where: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise _refused(where, f'more than {MAX_DEPTH} values inside each other')
    if isinstance(value, Tensor) or type(value) in PLAIN:
        return value
    if isinstance(value, HistoryBuffer):
        return value
    if isinstance(value, Mapping):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind(
            (_plain_key(key, where), _plain(entry, f'{where}.{key}', depth + 1))
            for key, entry in value.items()
        )
    if isinstance(value, tuple):
        return tuple(_plain(entry, f'{where}[{i}]', depth + 1) for i, entry in enumerate(value))
    if isinstance(value, list | range):
        return [_plain(entry, f'{where}[{i}]', depth + 1) for i, entry in enumerate(value)]
    if isinstance(value, set | frozenset):
        return {_plain(entry, where, depth + 1) for entry in value}
    if isinstance(value, np.ndarray):
        plain = value.dtype.kind in 'biufcSU'
        return value if plain else _plain(value.tolist(), where, depth + 1)
    if isinstance(value, np.generic):
        return value if value.dtype.kind in 'biufcSU' else _plain(value.item(), where, depth + 1)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, MOMENTS):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    scalars: tuple[type[Any], ...] = (bool, int, float, str, bytes)
    for scalar in scalars:  # an enumeration, a text with a class of its own
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, slice | bytearray):
        return value
    raise _refused(where, f'a {type(value).__module__}.{type(value).__qualname__}')


def _plain_key(key: Any, where: str) -> Any:
    plain = _plain(key, where, 0)
    try:
        hash(plain)
    except TypeError:
        raise _refused(where, f'the key {key!r}') from None
    return plain


def _read_back(value: Any, where: str) -> None:
    """Reads what would be written, without its tensors, as the reader of files does."""
    text = pickle.dumps(_without_tensors(value), protocol=2)
    try:
        build_values(run_pickle(io.BytesIO(text), {**TYPES, **CHECKPOINT_TYPES}), len(text))
    except ReadingError as error:
        raise _refused(where, str(error)) from None


def _without_tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, Mapping):
        return {key: _without_tensors(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(_without_tensors, value))
    return value


def _refused(where: str, what: str) -> CheckpointError:
    return CheckpointError(
        f'checkpoints of this run could not be read again: {where} is or holds {what}, expected '
        'numbers, texts, lists, dicts and arrays of these; make it one of them (the metainfo of a '
        'data set, or what a hook adds)'
    )
