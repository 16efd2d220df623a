"""From a config file to a runner that can start: reading, our settings, registries, processes."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner, get_priority

from cdra_mm.errors import ConfigError
from cdra_mm.heavy_imports import heavy_imports
from cdra_mm.methods import CDRA
from cdra_mm.spelling import did_you_mean, unknown

from .config_dump import choose_name
from .config_words import check_run_words
from .data_check import WatchDataHook
from .guards import set_guards
from .packages import drop_own_scope, find_config, register_packages
from .parallel.distributed_strategies import check_strategy
from .parallel.processes import end_processes, start_processes

__all__ = [
    'SCOPES',
    'build_runner',
    'end_processes',
    'load_config',
    'plain_config',
    'prepare_config',
    'register_package',
    'require_amp_device',
    'set_work_dir',
    'start_processes',
]

HOOK_TYPE = 'cdra_mm.CDRAHook'
SCOPES = ('mmseg', 'mmpretrain')
# What mmengine's AmpOptimWrapper runs on.
AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, final_run: bool = False
) -> Config:
    """Reads a config file.

    Args:
        path: The file, or the name of a shipped config; see `find_config`.
        overrides: ``key=value`` texts, as ``--cfg-options`` takes them.
        final_run: Whether to put the config's ``final_run`` over it, before the overrides.

    Raises:
        ConfigError: If the file is missing or cannot be read, has no usable ``final_run``
            where that is asked for, or an override is no ``key=value`` or does not fit.
    """
    path = find_config(path)
    set_guards()
    register_packages()
    try:
        cfg = drop_own_scope(Config.fromfile(path))
    except Exception as error:  # a config is a program
        raise ConfigError(f'config {path}: {type(error).__name__}: {error}') from error
    if final_run:
        _select_final_run(cfg, path)
    options = argparse.Namespace(values={})
    for text in overrides:
        if '=' not in text:
            raise ConfigError(f'--cfg-options {text}: expected key=value')
        try:
            DictAction(['--cfg-options'], 'values')(None, options, [text])
            cfg.merge_from_dict(options.values)
        except Exception as error:  # mmengine's own checks are asserts and lookups
            raise ConfigError(
                f'--cfg-options {text} does not fit {path}: {type(error).__name__}: {error}'
            ) from error
    return cfg


def prepare_config(cfg: Config) -> Config:
    """Puts our settings where mmengine reads them, and registers what the config uses.

    A top-level ``cdra = dict(...)`` becomes ``default_hooks.cdra``.

    Raises:
        ConfigError: If a setting is unknown or out of range, is given twice with
            different values, OpenMMLab lacks the package that the config needs, or see
            `check_run_words`.
    """
    check_run_words(cfg, SCOPES)
    _register(cfg)
    block = cfg.pop('cdra', None)
    hooks = cfg.get('default_hooks') or {}
    own = hooks.get('cdra')
    for name, value in (('cdra', block), ('default_hooks.cdra', own)):
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f'{name}={value!r}: expected a dict such as dict(budget_percent=0.5)')
    others = [hook for hook in cfg.get('custom_hooks') or () if _is(hook, 'CDRAHook')]
    for hook in others:
        _check_settings(hook)
    if block is None and own is None:
        if hooks:
            hooks.pop('cdra', None)  # None takes the hook of a base config out
        return cfg
    if others:
        raise ConfigError('CDRAHook stands in custom_hooks and in cdra or default_hooks: keep one')
    block, own = dict(block or {}), dict(own or {})
    for key in sorted(block.keys() & own.keys()):
        if block[key] != own[key]:
            raise ConfigError(
                f'cdra says {key}={block[key]!r}, default_hooks.cdra says {own[key]!r}: keep one'
            )
    settings = {'type': HOOK_TYPE, **own, **block}
    _check_settings(settings)
    cfg.default_hooks = {**hooks, 'cdra': settings}
    return cfg


def plain_config(cfg: Config) -> Config:
    """A copy of a config without hook and wrapper of ours; named data sets and heads stay."""
    plain = Config(cfg.to_dict())
    plain.pop('cdra', None)
    if plain.get('default_hooks'):
        plain.default_hooks.pop('cdra', None)
    if plain.get('custom_hooks'):
        plain.custom_hooks = [hook for hook in plain.custom_hooks if not _is(hook, 'CDRAHook')]
    if plain.get('custom_imports'):
        imports = plain.custom_imports.get('imports') or []
        imports = [imports] if isinstance(imports, str) else imports
        ours = __name__.partition('.')[0]
        plain.custom_imports['imports'] = [i for i in imports if i.partition('.')[0] != ours]
    model = plain.get('model')
    if model is not None and _is(model.get('backbone'), 'CDRABackbone'):
        model.backbone = model.backbone.backbone
    return plain


def set_work_dir(
    cfg: Config, config: str | Path, work_dir: str | None, *, suffix: str = ''
) -> None:
    """Sets and makes the work directory: the option, the config's own, or by the config's name.

    Args:
        cfg: The config, changed in place.
        config: Its file.
        work_dir: The option, None where it is not given.
        suffix: Ends the name unless the option gives it, so that runs of another kind do not
            write into the same folder.

    Raises:
        ConfigError: If it cannot be written.
    """
    default = str(cfg.get('work_dir') or f'./work_dirs/{Path(config).stem}').rstrip('/')
    cfg.work_dir = work_dir or default.removesuffix(suffix) + suffix
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'work directory {cfg.work_dir} cannot be made: {error}') from None
    if not os.access(cfg.work_dir, os.W_OK):
        raise ConfigError(f'work directory {cfg.work_dir} is not writable: name another')


def require_amp_device(cfg: Config) -> None:
    """Raises ConfigError where a config trains in mixed precision without a GPU."""
    if _is(cfg.get('optim_wrapper'), 'AmpOptimWrapper') and get_device() not in AMP_DEVICES:
        raise ConfigError(
            'mixed precision (--amp, or AmpOptimWrapper in the config) needs a GPU, and none is '
            'visible: leave it out, or set optim_wrapper.type=OptimWrapper'
        )


def build_runner(cfg: Config, *, keep_config: bool = False) -> Runner:
    """The runner of a config, of the class that it asks for.

    Args:
        cfg: The config, with its work directory.
        keep_config: Whether the config that an earlier run left there stays.

    Raises:
        ConfigError: See `check_strategy`.
    """
    hooks = [(cfg.get('default_hooks') or {}).get('cdra'), *(cfg.get('custom_hooks') or ())]
    check_strategy(cfg, adapts=any(_is(hook, 'CDRAHook') for hook in hooks))
    name = choose_name(cfg, keep_others=keep_config)
    runner: Runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if name is not None:
        runner.logger.info(f'the config of this run is kept as {name}: the other is not ours')
    runner.register_hook(WatchDataHook())
    return runner


def _select_final_run(cfg: Config, path: Path) -> None:
    """Puts the dict ``final_run`` of a config over the config itself.

    With it a config says how the run differs whose figure is reported: settings are chosen on a
    validation split, then one run trains on training and validation images and tests once.
    """
    changes = cfg.get('final_run')
    if not isinstance(changes, Mapping) or not changes:
        raise ConfigError(
            f'config {path} has no final_run: expected a dict of what the final run changes, as '
            'configs/_base_/datasets/vtab.py has it; leave --final out, or add it'
        )
    foreign = [key for key in changes if key not in cfg]
    if foreign:
        raise ConfigError(
            f'final_run of config {path} changes {", ".join(foreign)}, which the config does not '
            f'have{did_you_mean(foreign[0], list(cfg.keys()))}'
        )
    cfg.merge_from_dict(dict(changes))


def _register(cfg: Config) -> None:
    used = {cfg.get('default_scope'), *_scopes(cfg.to_dict())}
    for scope in SCOPES:
        if scope in used:
            register_package(scope)


def register_package(scope: str) -> None:
    """Imports a package of OpenMMLab, so that configs can name what it offers.

    Args:
        scope: One of ``SCOPES``.

    Raises:
        ConfigError: If it is not there, or lacks what it needs.
    """
    with heavy_imports(), warnings.catch_warnings(), redirect_stdout(None):
        # What they lack and say so (compiled operators, a storage service) is not used here.
        warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformableAttention``')
        try:
            import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
        except ImportError as error:
            raise ConfigError(f'the config uses {scope}, but: {error}') from error


def _scopes(config: Any) -> Iterator[str]:
    """First parts of the dotted type names in a config."""
    if isinstance(config, Mapping):
        kind = config.get('type')
        if isinstance(kind, str) and '.' in kind:
            yield kind.partition('.')[0]
        config = list(config.values())
    if isinstance(config, list | tuple):
        for entry in config:
            yield from _scopes(entry)


def _is(config: Any, name: str) -> bool:
    """Whether a config builds the class of that name, given as a name, a dotted path or a class."""
    kind = config.get('type') if isinstance(config, Mapping) else None
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', '')).split('.')[-1] == name


def _check_settings(config: Mapping[str, Any]) -> None:
    """Unknown names and values out of range, before anything is built."""
    from .hook import CDRAHook

    settings = {k: v for k, v in config.items() if k not in ('type', '_scope_', 'priority')}
    parameters = inspect.signature(CDRAHook).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    known += [field.name for field in fields(CDRA) if field.name not in known]
    for key in settings:
        if key not in known:
            raise ConfigError(unknown('cdra has no setting', key, known, ''))
    kind = config.get('type')
    try:
        cls = HOOKS.get(kind) if isinstance(kind, str) else kind
    except Exception:  # the registry imports what the name says
        cls = None
    if not isinstance(cls, type) or not issubclass(cls, CDRAHook):
        raise ConfigError(f'cdra: type={kind!r} is no CDRAHook: expected {HOOK_TYPE!r}')
    priority = config.get('priority')
    try:
        get_priority(CDRAHook.priority if priority is None else priority)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f'cdra: priority={priority!r} is none of mmengine ({error}): leave it out'
        ) from None
    try:
        logging.disable(logging.INFO)  # the runner builds the hook again, and logs then
        CDRAHook(**settings)
    finally:
        logging.disable(logging.NOTSET)
