"""Keys of what a checkpoint holds beside weights, and of its averaged weights."""

from __future__ import annotations

from typing import Any

from cdra_mm.core.model.digests import DIGESTS_KEY
from cdra_mm.core.model.own_state import PLAN_KEY

__all__ = ['AVERAGED', 'KEYS', 'PREFIX', 'RECORD_KEY', 'complete_averages']

PREFIX = 'backbone.'  # of the backbone's keys in a model's state dict
AVERAGED = 'module.'  # begins the names of averaged weights
RECORD_KEY = 'cdra_record'
KEYS = (RECORD_KEY, PLAN_KEY, DIGESTS_KEY)


def complete_averages(checkpoint: Any) -> None:
    """Averaged weights get the record that stands once in the file, with the weights beside them.

    They may be loaded before them, or alone: mmpretrain's EMA hook does so when it tests.
    """
    state, averages = (checkpoint.get(key) for key in ('state_dict', 'ema_state_dict'))
    if state and averages and PREFIX + RECORD_KEY in state:
        for key in KEYS:
            if PREFIX + key in state:
                averages.setdefault(AVERAGED + PREFIX + key, state[PREFIX + key])
