"""Words of a config that mmengine would look at late, or not at all."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from numbers import Integral

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import DATASETS, HOOKS, MODELS, TRANSFORMS
from mmengine.runner import Runner

from cdra_mm.errors import ConfigError
from cdra_mm.spelling import unknown

from .config_faults import settings_of

__all__ = ['check_checkpoint_hooks', 'check_run_words']

# A package that can be a default scope adds to one of these.
SCOPED = (MODELS, DATASETS, TRANSFORMS, HOOKS)
LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')


def check_run_words(cfg: Config, packages: Sequence[str]) -> None:
    """Checks what of a config names no class: its scope, its log level and its seed.

    Args:
        cfg: The config.
        packages: Scopes of packages that are registered where a config uses them.

    Raises:
        ConfigError: If mmengine cannot take one.
    """
    scope, level = cfg.get('default_scope'), cfg.get('log_level')
    scopes = {'mmengine', *packages, *(child for root in SCOPED for child in root.children)}
    if scope is not None and scope not in scopes and not _is_package(scope):
        raise ConfigError(unknown('default_scope', str(scope), sorted(scopes)))
    if isinstance(level, str) and not isinstance(logging.getLevelName(level), int):
        raise ConfigError(unknown('log_level', level, LEVELS))
    randomness = cfg.get('randomness') or {}
    if not isinstance(randomness, Mapping):
        raise ConfigError(f'randomness={randomness!r}: expected a dict such as dict(seed=0)')
    seed = randomness.get('seed')
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0):
        raise ConfigError(f'randomness.seed={seed!r}: expected a count of at least 0, or None')


def _is_package(scope: object) -> bool:
    """Whether mmengine can import a scope when it is first used."""
    return isinstance(scope, str) and scope.isidentifier() and find_spec(scope) is not None


def check_checkpoint_hooks(runner: Runner) -> None:
    """Checks what a `CheckpointHook` hands on, before the first checkpoint is due.

    It takes every setting, and gives those that are not its own to the runner when it saves: a
    misspelt one would end the run then, with all that it has trained.

    Raises:
        ConfigError: If neither of them knows a setting.
    """
    taken = inspect.signature(runner.save_checkpoint).parameters
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            for key in hook.args:
                if key not in taken:
                    known = settings_of(type(hook))
                    raise ConfigError(unknown('CheckpointHook has no setting', key, known, ''))
