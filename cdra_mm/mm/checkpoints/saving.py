"""Checkpoints that are whole or not there, and the last good one until the next is written.

mmengine (0.10.7 and 0.10.12) writes ``iter_N.pth`` in place, then ``last_checkpoint`` in place, and
with ``max_keep_ckpts`` or ``save_best`` it removes the old checkpoint *before* it writes the new
one. A process that is killed, or a disk that is full, at the wrong moment leaves a cut-off file, an
empty pointer, or nothing at all. Here the order is: write under a temporary name, rename, point to
it, and only then remove what is outdated.
"""

from __future__ import annotations

import inspect
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process, master_only
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from cdra_mm.errors import CheckpointError
from cdra_mm.last_checkpoint import POINTER, pointed_at
from cdra_mm.storage import write_atomically, write_text
from cdra_mm.storage.leftovers import clear_leftovers

from ..divergence import check_finite
from ..host.runner_parts import (
    OpenCheckpointHook,
    replace_checkpoint_hooks,
    replace_save_checkpoint,
)
from .own_files import OwnFiles, remove_own

__all__ = ['OrderedCheckpointHook', 'clear_folders', 'save_safely']


class OrderedCheckpointHook(OpenCheckpointHook):
    """mmengine's hook, which removes nothing before its successor is on the disk."""

    def write_numbered(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """Writes the checkpoint of a step, points to it, and then removes what is outdated."""
        limit = self.max_keep_ckpts
        kept = [*(i for i in getattr(self, 'keep_ckpt_ids', ()) if i != step), step]
        outdated = kept[:-limit] if limit > 0 else []
        if limit > 0:
            # With the outdated ones: if this run ends here, the next one removes them.
            runner.message_hub.update_info('keep_ckpt_ids', list(kept))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_text(Path(runner.work_dir) / POINTER, self.last_ckpt)
            for old in outdated:
                path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
                self._remove(path)
        if limit > 0:
            self.keep_ckpt_ids = deque(kept[-limit:], limit)
            runner.message_hub.update_info('keep_ckpt_ids', kept[-limit:])

    def write_best(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Writes the best checkpoint, and then removes those that were."""
        with self.noting_removals() as removed:
            super().write_best(runner, metrics)
        best = {getattr(self, 'best_ckpt_path', None)}
        best |= set(getattr(self, 'best_ckpt_path_dict', {}).values())
        for path in removed:
            if path not in best:  # a resumed run may find the same best again
                self._remove(path)

    def _remove(self, path: str) -> None:
        remove_own(self.file_backend, path, self.out_dir, self.filename_tmpl)


def save_safely(runner: Runner) -> None:
    """Makes a run write every checkpoint under a temporary name first, and remove old ones last.

    None is written of a run that has diverged: it would replace a good one.

    Checkpoints in remote storage (``backend_args``, an address) are left to mmengine, and the order
    of removals to hooks that are a class of their own.

    Args:
        runner: A runner before training; calling it twice does no harm.
    """
    replace_checkpoint_hooks(runner, OrderedCheckpointHook)
    replace_save_checkpoint(runner, lambda plain: _safely(runner, plain))


def _safely(runner: Runner, plain: Callable[..., None]) -> Callable[..., None]:
    """A run's ``save_checkpoint`` that leaves a whole file or none."""
    signature = inspect.signature(plain)

    def save_checkpoint(*args: Any, **kwargs: Any) -> None:
        check_finite(runner)  # on every process: all of them end
        save_on_main(*args, **kwargs)

    @master_only
    def save_on_main(out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(out_dir, filename, *args, **kwargs).arguments
        remote = given.get('file_client_args') or given.get('backend_args')
        if remote or '://' in str(out_dir):
            plain(out_dir, filename, *args, **kwargs)
            return

        def write(temporary: str) -> None:
            plain(out_dir, Path(temporary).name, *args, **kwargs)
            with open(temporary, 'rb') as file:
                os.fsync(file.fileno())  # or a loss of power may leave the name without the bytes

        try:
            write_atomically(Path(out_dir) / filename, write)
        except CheckpointError as error:
            last = pointed_at(runner.work_dir)
            good = last.name if last is not None and last.is_file() else 'none yet'
            raise CheckpointError(
                f'{error}; the last good checkpoint is {good}: make room or mend the folder, then '
                'go on with the same command and --resume'
            ) from None

    return save_checkpoint


def clear_folders(own: OwnFiles) -> None:
    """Removes what a killed process has left half-written where a run keeps its checkpoints."""
    if is_main_process():
        for folder in own.folders:
            clear_leftovers(folder, MMLogger.get_current_instance().info)
