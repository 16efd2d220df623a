"""What mmengine's checkpoints hold beside tensors, numpy's arrays and plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer

from cdra_mm.reading import AllowedType, NamedFunction
from cdra_mm.reading.allowed_types import ForeignTypeError, PendingObject, ReadingError
from cdra_mm.reading.numpy_types import NUMPY_TYPES

from .host.checkpoint_loaders import CURVES, FUNCTIONS_KEY, HISTORY_KEYS, history_of

__all__ = ['CHECKPOINT_TYPES', 'STATISTICS', 'WEIGHT_TYPES']

HISTORY = f'{HistoryBuffer.__module__}.{HistoryBuffer.__qualname__}'
# What HistoryBuffer stores of itself: its four functions, by name.
STATISTICS = ('min', 'max', 'current', 'mean')
SCHEDULERS = 'mmengine.optim.scheduler'
# Functions of a class that a file may name; a pickle says getattr(class, name). None is called.
FUNCTIONS: dict[str, tuple[str, ...]] = {HISTORY: STATISTICS}
# The scheduler's curve, as checkpoints of OneCycleLR and OneCycleMomentum held it.
FUNCTIONS |= {
    f'{SCHEDULERS}.{module}.{name}': CURVES
    for module, names in {
        'param_scheduler': ('OneCycleParamScheduler',),
        'lr_scheduler': ('OneCycleLR',),
    }.items()
    for name in names
}

Finish = Callable[[Any], Any]


def _function(made: PendingObject, finish: Finish) -> NamedFunction:
    owner, name = made.args if len(made.args) == 2 else (None, None)
    known = FUNCTIONS.get(owner.name, ()) if isinstance(owner, AllowedType) else ()
    if not isinstance(owner, AllowedType) or name not in known:
        what = owner.name if isinstance(owner, AllowedType) else type(owner).__name__
        raise ForeignTypeError(f'getattr({what}, {str(name)[:40]!r})')
    return NamedFunction(f'{owner.name}.{name}')


def _history(made: PendingObject, finish: Finish) -> HistoryBuffer:
    """A buffer of logged values; its functions are those of the class, whatever the file says."""
    state = made.state
    if not isinstance(state, dict) or made.args:
        raise ReadingError('a HistoryBuffer without values')
    log, count = (finish(state.get(key)) for key in HISTORY_KEYS)
    functions = state.get(FUNCTIONS_KEY, {})
    most = state.get('max_length')
    if not all(
        isinstance(a, np.ndarray) and a.ndim == 1 and a.dtype.kind in 'biuf' for a in (log, count)
    ):
        raise ReadingError('a HistoryBuffer without numbers')
    if len(log) != len(count) or type(most) is not int or not len(log) <= most < 1 << 62:
        raise ReadingError('a HistoryBuffer whose lengths do not fit')
    finish(functions)  # known names only
    return history_of(log, count, most)


def _settings(made: PendingObject, finish: Finish) -> dict[Any, Any]:
    """A ConfigDict, as a plain dict."""
    found = finish(made.args[0]) if made.args else {}
    if not isinstance(found, dict):
        raise ReadingError('a ConfigDict of no settings')
    return found


def _ignored(made: PendingObject, finish: Finish) -> None:
    """What lies beside weights, where only these are of interest."""


CHECKPOINT_TYPES = {
    kind.name: kind
    for kind in (
        AllowedType(HISTORY, _history),
        AllowedType('builtins.getattr', _function),
        AllowedType('mmengine.config.config.ConfigDict', _settings),
        *(AllowedType(name) for name in FUNCTIONS if name != HISTORY),
    )
}
WEIGHT_TYPES = {
    name: AllowedType(name, _ignored) for name in (HISTORY, 'builtins.getattr', *NUMPY_TYPES)
}
