"""What mmengine's checkpoints hold beside tensors, numpy's arrays and plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer

from cdra_mm.reading import Kind, NamedFunction
from cdra_mm.reading.kinds import ForeignTypeError, Made, ReadingError
from cdra_mm.reading.numpy_kinds import NUMPY_KINDS

__all__ = ['CHECKPOINT_KINDS', 'STATISTICS', 'WEIGHT_KINDS']

HISTORY = f'{HistoryBuffer.__module__}.{HistoryBuffer.__qualname__}'
# What HistoryBuffer stores of itself: its four functions, by name.
STATISTICS = ('min', 'max', 'current', 'mean')
SCHEDULERS = 'mmengine.optim.scheduler'
# Functions of a class that a file may name; a pickle says getattr(class, name). None is called.
FUNCTIONS: dict[str, tuple[str, ...]] = {HISTORY: STATISTICS}
# The scheduler's curve, as checkpoints of OneCycleLR and OneCycleMomentum held it.
FUNCTIONS |= {
    f'{SCHEDULERS}.{module}.{name}': ('_annealing_cos', '_annealing_linear')
    for module, names in {
        'param_scheduler': ('OneCycleParamScheduler',),
        'lr_scheduler': ('OneCycleLR',),
    }.items()
    for name in names
}

Finish = Callable[[Any], Any]


def _function(made: Made, finish: Finish) -> NamedFunction:
    owner, name = made.args if len(made.args) == 2 else (None, None)
    known = FUNCTIONS.get(owner.name, ()) if isinstance(owner, Kind) else ()
    if not isinstance(owner, Kind) or name not in known:
        what = owner.name if isinstance(owner, Kind) else type(owner).__name__
        raise ForeignTypeError(f'getattr({what}, {str(name)[:40]!r})')
    return NamedFunction(f'{owner.name}.{name}')


def _history(made: Made, finish: Finish) -> HistoryBuffer:
    """A buffer of logged values; its functions are those of the class, whatever the file says."""
    state = made.state
    if not isinstance(state, dict) or made.args:
        raise ReadingError('a HistoryBuffer without values')
    log, count = finish(state.get('_log_history')), finish(state.get('_count_history'))
    functions = state.get('_statistics_methods', {})
    most = state.get('max_length')
    if not all(
        isinstance(a, np.ndarray) and a.ndim == 1 and a.dtype.kind in 'biuf' for a in (log, count)
    ):
        raise ReadingError('a HistoryBuffer without numbers')
    if len(log) != len(count) or type(most) is not int or not len(log) <= most < 1 << 62:
        raise ReadingError('a HistoryBuffer whose lengths do not fit')
    finish(functions)  # known names only
    buffer = HistoryBuffer(max_length=most)
    buffer._log_history, buffer._count_history = log, count
    return buffer


def _settings(made: Made, finish: Finish) -> dict[Any, Any]:
    """A ConfigDict, as a plain dict."""
    found = finish(made.args[0]) if made.args else {}
    if not isinstance(found, dict):
        raise ReadingError('a ConfigDict of no settings')
    return found


def _ignored(made: Made, finish: Finish) -> None:
    """What lies beside weights, where only these are of interest."""


CHECKPOINT_KINDS = {
    kind.name: kind
    for kind in (
        Kind(HISTORY, _history),
        Kind('builtins.getattr', _function),
        Kind('mmengine.config.config.ConfigDict', _settings),
        *(Kind(name) for name in FUNCTIONS if name != HISTORY),
    )
}
WEIGHT_KINDS = {name: Kind(name, _ignored) for name in (HISTORY, 'builtins.getattr', *NUMPY_KINDS)}
