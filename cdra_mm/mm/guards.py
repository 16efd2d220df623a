"""What a process is given before anything of a run is built or read; importing sets none of it."""

from __future__ import annotations

import warnings

from .compatibility import guard_checkpoints

__all__ = ['set_guards']


def set_guards() -> None:
    """Sets what holds for the whole process; to call it again changes nothing.

    `CDRAHook` and `CDRABackbone` call it when they are built, the tools before they read a config.
    """
    # mmcv without compiled operators says so at every import; no backbone here uses them.
    message = 'Fail to import ``MultiScaleDeformableAttention``'
    if not any(entry[1] is not None and entry[1].pattern == message for entry in warnings.filters):
        warnings.filterwarnings('ignore', message=message)
    guard_checkpoints()
