"""What a config asks of a run that goes on, where the checkpoint has settled it already.

mmengine takes the optimizer's settings out of the checkpoint and says nothing of the config's. What
would make another run of it is refused here; what is only not followed is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from cdra_mm.command_line import command
from cdra_mm.core import Plan
from cdra_mm.errors import CheckpointError

from ..run_planning.run_plan import read_plan
from .record import Record

__all__ = ['check_asked', 'check_optimizer_type', 'note_optimizer']

OPTIMIZER_KEY = 'cdra_optimizer'
# Told where they differ: a schedule starts from `initial_lr`, without one from `lr`.
TOLD = ('initial_lr', 'weight_decay')


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
        asked = read_plan(path)
        if plan is None or replace(asked, fingerprint='') != replace(plan, fingerprint=''):
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


def note_optimizer(runner: Runner, meta: MutableMapping[str, Any]) -> None:
    """Puts the types of the optimizers into the meta of a checkpoint."""
    meta[OPTIMIZER_KEY] = {name: type(part).__name__ for name, part in _optimizers(runner)}


def check_optimizer_type(checkpoint: Mapping[str, Any], runner: Runner) -> None:
    """Refuses the state of another type of optimizer, and tells which settings are the old ones.

    Args:
        checkpoint: A checkpoint with all its parts.
        runner: The run, its optimizer built.

    Raises:
        CheckpointError: If the optimizer is of another type.
    """
    noted = checkpoint['meta'].get(OPTIMIZER_KEY)
    noted = noted if isinstance(noted, Mapping) else {}
    told: dict[str, str] = {}
    for name, optimizer in _optimizers(runner):
        groups = _groups(checkpoint['optimizer'], name)
        own = type(optimizer).__name__
        given = noted.get(name)
        if given is None and not set(optimizer.defaults) & _own_settings(groups[0]):
            given = 'of another type' if _own_settings(groups[0]) else own
        if given not in (None, own):
            raise CheckpointError(
                f'the checkpoint was trained with an optimizer {given}, the config has {own}: what '
                'it remembers of the gradients means nothing to another; use the same, or start '
                'from the weights with load_from without resume'
            )
        for there, here in zip(groups, optimizer.param_groups, strict=False):
            for key in TOLD:
                old, new = (group.get(key, group.get('lr')) for group in (there, here))
                if isinstance(old, int | float) and old != new:
                    told.setdefault(key.removeprefix('initial_'), f'{old!r}, not {new!r}')
    if told:
        settings = '; '.join(f'{key} is {values}' for key, values in told.items())
        MMLogger.get_current_instance().warning(
            f'the optimizer goes on with the settings of the checkpoint ({settings}): to change '
            'them, start from its weights with load_from without resume'
        )


def _groups(state: Any, name: str) -> list[Mapping[str, Any]]:
    """The parameter groups of an optimizer's state, as far as they are such (see `checked`)."""
    for key in (name, 'param_groups') if name else ('param_groups',):
        state = state.get(key) if isinstance(state, Mapping) else None
    groups = state if type(state) is list else []
    return [group for group in groups if isinstance(group, Mapping)] or [{}]


def _own_settings(group: Mapping[str, Any]) -> set[str]:
    """Settings of a parameter group that few optimizers share."""
    common = {'params', 'lr', 'initial_lr', 'weight_decay', 'foreach', 'maximize', 'capturable',
              'differentiable', 'fused', 'swap_tensors'}  # fmt: skip
    return set(group) - common


def _optimizers(runner: Runner) -> Iterator[tuple[str, Any]]:
    wrapper = runner.optim_wrapper
    parts = wrapper.items() if isinstance(wrapper, OptimWrapperDict) else [('', wrapper)]
    for name, part in parts:
        yield name, part.optimizer
