"""A run that ends where its first iteration would begin: what would be trained, and no training."""

from __future__ import annotations

from pathlib import Path

from mmengine.hooks import Hook
from mmengine.runner import Runner

from cdra_mm.errors import ConfigError

from .hook import PLAN_FILE, CDRAHook

__all__ = ['plan_only']


class _Planned(Exception):
    """Ends the run from within its hooks."""


class _EndHook(Hook):
    """Comes last among those that prepare a training."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        raise _Planned


def plan_only(runner: Runner) -> Path:
    """Starts a run with `CDRAHook`, and ends it once the hook has planned.

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
    runner.register_hook(_EndHook())
    try:
        runner.train()
    except _Planned:
        hook.after_run(runner)  # the work directory is free
    if hook.record is None or not hook.record.plan:
        raise ConfigError(f'method {hook.method.name} trains without a plan: there is none to show')
    return Path(runner.work_dir) / PLAN_FILE
