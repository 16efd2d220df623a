"""The last hook to touch a checkpoint: the named base goes out, the record goes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from cdra_mm.core.model.own_state import base_buffers

from ..backbone import PREFIX, find_backbone
from ..parameter_groups import put_apart
from ..rebuild import plain_model
from .checked_optimizer import note_optimizer
from .midway import MIDWAY_KEY, midway_state
from .plain_state import make_plain
from .record import Record, slim

__all__ = ['SlimCheckpointHook']


class SlimCheckpointHook(Hook):
    """Slims checkpoints after every other hook has added to them.

    Args:
        record: Gives the record of the run, None as long as there is none.
    """

    priority = 'LOWEST'

    def __init__(self, record: Callable[[], Record | None]) -> None:
        self.record = record
        self._epoch_iters = 0  # done of the current epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Notes the place within the epoch: a checkpoint is written after the iteration."""
        self._epoch_iters = batch_idx + 1

    def after_train_epoch(self, runner: Runner) -> None:
        """The next epoch starts at its beginning."""
        self._epoch_iters = 0

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Leaves the named base out and puts the record in, also in an EMA's state."""
        if 'optimizer' in checkpoint:  # it can be resumed
            note_optimizer(runner.optim_wrapper, checkpoint['meta'])
            put_apart(runner, checkpoint)
            midway = midway_state(runner, checkpoint['meta']['epoch'], self._epoch_iters)
            if midway:
                checkpoint[MIDWAY_KEY] = midway
        make_plain(checkpoint)
        record = self.record()
        if record is None or record.plan is None:
            return  # the whole backbone is trained: a plain checkpoint
        buffers = base_buffers(find_backbone(plain_model(runner)))
        slim(checkpoint, PREFIX, record, buffers)
