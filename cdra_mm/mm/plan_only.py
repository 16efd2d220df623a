"""A run that ends after its first iterations: what would be trained and what it costs, no training.

The iterations are real ones, so that seconds and memory are those of this machine; what they have
learnt is thrown away.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from cdra_mm.errors import ConfigError
from cdra_mm.progress import duration

from .backbone import find_backbone
from .hook import PLAN_FILE, CDRAHook
from .host.runner_parts import leave_validation_out
from .optimizer_parameters import quiet_about
from .rebuild import plain_model

__all__ = ['plan_only']

STEPS = 4  # that are timed; the first is left out


class _Planned(Exception):
    """Ends the run from within its hooks."""


class _EndHook(Hook):
    """Ends the run after some iterations, or before the first one where none is wanted."""

    priority = 'LOWEST'

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.ends: list[float] = []

    def before_train(self, runner: Runner) -> None:
        self.ends.append(time.perf_counter())
        if not self.steps:
            raise _Planned
        leave_validation_out(runner.train_loop)

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        # Also in a training as short as this: at its end the hooks would write its results.
        if len(self.ends) > self.steps or runner.iter + 1 >= runner.max_iters:
            raise _Planned


class _PeakHook(Hook):
    """The peak of a GPU's memory: with each line of its log mmengine begins to count anew."""

    priority = 'VERY_HIGH'  # before the log

    def __init__(self) -> None:
        self.peak = 0

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())


def plan_only(runner: Runner, steps: int = STEPS) -> Path:
    """Starts a run with `CDRAHook`, and ends it once the hook has planned.

    Args:
        runner: The run.
        steps: Iterations that are timed, and whose results are thrown away.

    Returns:
        The plan's file. What training would take is in the log.

    Raises:
        ConfigError: If the run does not adapt, or its method plans nothing.
    """
    hook = next((hook for hook in runner.hooks if isinstance(hook, CDRAHook)), None)
    if hook is None:
        raise ConfigError(
            'the config adapts nothing, so there is nothing to plan: add '
            "default_hooks = dict(cdra=dict(type='cdra_mm.CDRAHook')), or --cfg-options "
            'cdra.budget_percent=0.5'
        )
    end, memory = _EndHook(steps), _PeakHook()
    runner.register_hook(end)
    runner.register_hook(memory)
    try:
        with quiet_about('paramwise_options'):  # the plan would be lost between hundreds of lines
            runner.train()
    except _Planned:
        hook.after_run(runner)  # the work directory is free
    if hook.record is None or not hook.record.plan:
        raise ConfigError(f'method {hook.method.name} trains without a plan: there is none to show')
    seconds = [after - before for before, after in zip(end.ends[1:], end.ends[2:], strict=False)]
    if seconds:  # the first one warms up
        runner.logger.info(_cost(runner, median(seconds), memory.peak))
    return Path(runner.work_dir) / PLAN_FILE


def _cost(runner: Runner, step: float, peak: int) -> str:
    """Seconds and bytes that a training takes, as far as its first iterations tell.

    Args:
        runner: The run.
        step: Seconds of an iteration.
        peak: Bytes of a GPU, where there is one.
    """
    iterations = runner.max_iters
    size = runner.train_dataloader.batch_size
    own = {id(p) for p in find_backbone(plain_model(runner)).parameters()}
    trained = [p for p in plain_model(runner).parameters() if p.requires_grad]
    inside = sum(p.numel() for p in trained if id(p) in own)
    if torch.cuda.is_available():
        where = 'of the GPU'
    else:
        peak, where = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, 'of the process'
    states = 3  # a weight and what Adam keeps of it
    return (
        f'an iteration of {size} images takes {step:.3g} s here, {iterations:,} of them '
        f'{duration(step * iterations)} without validation; peak memory {where}: '
        f'{peak / 2**20:,.0f} MiB, scoring included; a checkpoint: about '
        f'{states * 4 * sum(p.numel() for p in trained) / 2**20:.2f} MiB, the adapter alone: '
        f'{4 * inside / 2**20:.2f} MiB'
    )
