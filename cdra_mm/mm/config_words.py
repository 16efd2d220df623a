"""Words of a config that mmengine would look at late, or not at all."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import Runner

from cdra_mm.errors import ConfigError
from cdra_mm.spelling import did_you_mean, unknown

__all__ = ['check_run_words']

LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# What each part of a config has to be where it is given.
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(('model', 'train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper'), (Mapping,)),
    **dict.fromkeys(('default_hooks', 'env_cfg', 'visualizer', 'log_processor'), (Mapping,)),
    **dict.fromkeys((*LOADERS, 'auto_scale_lr'), (Mapping,)),
    **dict.fromkeys(('val_evaluator', 'test_evaluator'), (Mapping, list)),
    'param_scheduler': (Mapping, list, tuple),
    'custom_hooks': (list, tuple),
    **dict.fromkeys(('default_scope', 'load_from', 'work_dir'), (str,)),
}
NAMES = {Mapping: 'a dict', list: 'a list', str: 'a text'}


def check_run_words(cfg: Config, packages: Sequence[str]) -> None:
    """Checks the kinds of a config's parts, and what names no class: scope, log level and seed.

    Args:
        cfg: The config.
        packages: Scopes of packages that are registered where a config uses them.

    Raises:
        ConfigError: If mmengine cannot take one.
    """
    for key, kinds in KINDS.items():
        value = cfg.get(key)
        if value is not None and not isinstance(value, kinds):
            expected = ' or '.join(NAMES[kind] for kind in kinds if kind in NAMES)
            raise ConfigError(f'{key}={value!r}: expected {expected}')
    scope, known = cfg.get('default_scope'), {'mmengine', *packages, *_scopes()}
    # Another one may be the label of a config that names its classes in full.
    if scope and scope not in known and not _is_package(scope) and did_you_mean(scope, known):
        raise ConfigError(unknown('default_scope', scope, sorted(known)))
    _check_log_level(cfg.get('log_level', 'INFO'))
    _check_randomness(cfg.get('randomness', {}))


def _scopes() -> set[str]:
    """The packages that have added to one of mmengine's registries."""
    roots = [root for root in vars(mmengine.registry).values() if isinstance(root, Registry)]
    return {scope for root in roots for scope in root.children}


def _is_package(scope: str) -> bool:
    """Whether mmengine can import a scope when it is first used."""
    try:
        return find_spec(scope) is not None
    except (ImportError, ValueError):
        return False


def _check_log_level(level: object) -> None:
    if isinstance(level, str):
        if not isinstance(logging.getLevelName(level), int):
            raise ConfigError(unknown('log_level', level, LEVELS))
    elif isinstance(level, bool) or not isinstance(level, int):
        raise ConfigError(f'log_level={level!r}: expected one of {", ".join(LEVELS)}')


def _check_randomness(randomness: object) -> None:
    if not isinstance(randomness, Mapping):
        raise ConfigError(f'randomness={randomness!r}: expected a dict such as dict(seed=0)')
    known = list(inspect.signature(Runner.set_randomness).parameters)[1:]
    for key in randomness:
        if key not in known:
            raise ConfigError(unknown('randomness has no setting', key, known, ''))
    seed = randomness.get('seed')
    # numpy takes no larger one, Python's own generator none of numpy's types.
    wrong = isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32
    if seed is not None and wrong:
        raise ConfigError(f'randomness.seed={seed!r}: expected an integer from 0 to 2**32 - 1')
