"""The last hook to touch a checkpoint: the named base goes out, the record goes in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from .backbone import PREFIX
from .checkpoint import Record, slim

__all__ = ['SlimCheckpointHook']


class SlimCheckpointHook(Hook):
    """Slims checkpoints after every other hook has added to them.

    Args:
        record: Gives the record of the run, None as long as there is none.
    """

    priority = 'LOWEST'

    def __init__(self, record: Callable[[], Record | None]) -> None:
        self.record = record

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Leaves the named base out and puts the record in, also in an EMA's state."""
        record = self.record()
        if record is None or not record.plan:  # the whole backbone is trained: a plain checkpoint
            return
        slim(checkpoint['state_dict'], PREFIX, record)
        if 'ema_state_dict' in checkpoint:
            slim(checkpoint['ema_state_dict'], 'module.' + PREFIX, record)
        # The record is what counts; this copy is for people who look into the file.
        checkpoint['meta']['cdra'] = {
            'method': record.method,
            'settings': dict(record.settings),
            'base': asdict(record.base) if record.base else None,
            'fingerprint': record.fingerprint,
        }
