"""What a config asks of a run that goes on, where the checkpoint has settled it already.

What would make another run of it is refused here; what is only not followed is told.
"""

from __future__ import annotations

from pathlib import Path

from mmengine.logging import MMLogger

from cdra_mm.command_line import command
from cdra_mm.core import Plan
from cdra_mm.core.adapters.adapted import same_plan
from cdra_mm.errors import CheckpointError

from ..planning.given_plan import read_plan
from .record import Record

__all__ = ['check_asked']


def check_asked(
    record: Record, plan: Plan | None, path: str | Path | None, save_base: bool
) -> None:
    """Compares what the hook is asked for with what a checkpoint has settled.

    Args:
        record: The record of the checkpoint.
        plan: Its plan.
        path: The plan file of the config.
        save_base: Whether the config wants the base stored.

    Raises:
        CheckpointError: If the plan file is another plan.
    """
    if path is not None:
        if plan is None or not same_plan(read_plan(path), plan):
            raise CheckpointError(
                f'the checkpoint was trained with another plan than plan={str(path)!r}: leave that '
                'setting out to go on with its own, or start a new run in another work directory'
            )
    if save_base and record.left_out:
        MMLogger.get_current_instance().warning(
            'save_base=True is not followed: the checkpoint that is gone on from names its base '
            'weights, and so do those that follow; a file with everything is written by '
            + command('merge')
        )
