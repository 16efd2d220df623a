"""How mmengine reads checkpoint files: its loaders, replaced, and what it stores in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader, checkpoint

__all__ = [
    'CURVES',
    'FUNCTIONS_KEY',
    'HISTORY_KEYS',
    'history_of',
    'hub_entries',
    'plain_loaders',
    'replace_loader',
    'replace_readers',
]

Loader = Callable[..., Any]

# A pickled HistoryBuffer: its values with their counts, and its functions by name.
HISTORY_KEYS, FUNCTIONS_KEY = ('_log_history', '_count_history'), '_statistics_methods'
# The scheduler's curve, as checkpoints of OneCycleLR and OneCycleMomentum held it.
CURVES = ('_annealing_cos', '_annealing_linear')


def replace_readers(read_any: Loader, read_address: Loader) -> None:
    """Replaces what mmengine's loaders call in their module, for this process.

    Args:
        read_any: In the place of ``_safe_torch_load``, where a release has it.
        read_address: In the place of ``load_from_http``.
    """
    checkpoint.load_from_http = read_address
    if hasattr(checkpoint, '_safe_torch_load'):
        checkpoint._safe_torch_load = read_any


def plain_loaders() -> dict[str, Loader]:
    """mmengine's own loaders by the prefix of what they read; those of others are not in it."""
    return {
        prefix: loader
        for prefix, loader in CheckpointLoader._schemes.items()
        if loader.__module__ == checkpoint.__name__
    }


def replace_loader(prefix: str, loader: Loader) -> None:
    """Registers a loader anew, the way mmengine provides for."""
    CheckpointLoader.register_scheme(prefixes=prefix, loader=loader, force=True)


def history_of(log: np.ndarray, count: np.ndarray, length: int) -> HistoryBuffer:
    """A buffer of logged values.

    Args:
        log: The values.
        count: How often each counts.
        length: How many it may hold.
    """
    buffer = HistoryBuffer(max_length=length)
    buffer._log_history, buffer._count_history = log, count
    return buffer


def hub_entries(hub: MessageHub) -> tuple[Any, Any]:
    """What a message hub knows, and which of it comes back on resume; None for another object."""
    return getattr(hub, '_runtime_info', None), getattr(hub, '_resumed_keys', None)
