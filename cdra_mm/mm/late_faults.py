"""Words of a config that would end a run when a step, a checkpoint or a validation is due.

OpenMMLab takes them, and looks at them for the first time then: after the scoring, after the first
epoch, with all that was trained. What a class of the user's own may look at is left to it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.registry import (
    LOOPS,
    METRICS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    Registry,
)
from mmengine.runner import Runner
from torch import Tensor, nn

from cdra_mm.errors import ConfigError
from cdra_mm.spelling import unknown

from .config_parts import LIBRARIES
from .rebuild import plain_model
from .registry_classes import class_of, default_of, settings_of

__all__ = ['check_late_words']

CLIPPING: dict[Any, Callable[..., Any]] = {
    'norm': nn.utils.clip_grad_norm_,
    'value': nn.utils.clip_grad_value_,
}


def check_late_words(runner: Runner, command: str) -> None:
    """Checks them in a runner that is built and has not begun.

    Args:
        runner: The runner.
        command: ``'train'`` or ``'test'``: what is not used by it is not looked at.

    Raises:
        ConfigError: If one could not be taken.
    """
    if command == 'test':
        _figures('test_evaluator', runner)
        return
    _check_clipping(runner.cfg.get('optim_wrapper'))
    validates = runner.cfg.get('val_cfg') is not None
    if validates:
        _check_validations(runner.cfg.get('train_cfg') or {})
    figures = _figures('val_evaluator', runner) if validates else None
    for hook in runner.hooks:
        if not _is_of_library(type(hook)):
            continue
        name, interval = type(hook).__name__, getattr(hook, 'interval', None)
        if interval is not None:
            _check_number(f'{name}: interval', interval)
        if isinstance(hook, CheckpointHook):
            _check_words(hook, runner)
            for figure in hook.save_best or ():
                _check_figure(
                    f'{name}: val_evaluator gives no figure to save_best',
                    figure,
                    figures and [*figures, 'auto'],
                )
        if isinstance(hook, EarlyStoppingHook) and hook.strict:
            _check_figure(
                f'{name}: val_evaluator gives no figure to monitor', hook.monitor, figures
            )


def _check_figure(what: str, figure: str, known: Sequence[str] | None) -> None:
    if known and figure not in known:
        raise ConfigError(unknown(what, figure, known, ''))


def _is_of_library(cls: type | None) -> bool:
    return cls is not None and cls.__module__.partition('.')[0] in (*LIBRARIES, 'cdra_mm')


def _is_own(part: Any, key: str, registry: Registry) -> bool:
    """Whether a part of a config names a class of the user's there."""
    kind = part.get(key)
    return kind is not None and not _is_of_library(class_of(registry, kind))


def _check_clipping(wrapper: Any) -> None:
    """What an optimizer wrapper hands on to torch with the first step."""
    given = wrapper.get('clip_grad') if isinstance(wrapper, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(given.get('type', 'norm'), str):
        return
    own = _is_own(wrapper, 'type', OPTIM_WRAPPERS)
    clip = CLIPPING.get(given.get('type', 'norm'))
    # The wrapper itself refuses another type, and what holds nothing, when it is built.
    words = {key: value for key, value in given.items() if key != 'type'}
    if own or _is_own(wrapper, 'constructor', OPTIM_WRAPPER_CONSTRUCTORS) or not clip or not words:
        return
    where = 'optim_wrapper.clip_grad'
    limit, *others = list(inspect.signature(clip).parameters)[1:]
    for key in words:
        if key not in (limit, *others):
            raise ConfigError(unknown(f'{where} has no setting', key, [limit, *others], ''))
    if limit not in words:
        raise ConfigError(f'{where} needs {limit}, which {clip.__name__} of torch clips to')
    probe = nn.Parameter(torch.zeros(1))
    probe.grad = torch.zeros(1)
    try:
        clip([probe], **words)
    except (TypeError, ValueError, RuntimeError) as error:
        told = ', '.join(f'{key}={value!r}' for key, value in words.items())
        raise ConfigError(
            f'{where}: {clip.__name__} of torch cannot take {told}: {type(error).__name__}: {error}'
        ) from None


def _check_validations(train_cfg: Mapping[str, Any]) -> None:
    """When a loop of mmengine's validates."""
    if _is_own(train_cfg, 'type', LOOPS):
        return
    for key in ('val_begin', 'val_interval'):
        _check_number(f'train_cfg.{key}', train_cfg.get(key, 1))
    if train_cfg.get('val_interval', 1) == 0 and not train_cfg.get('dynamic_intervals'):
        raise ConfigError('train_cfg.val_interval=0: expected at least 1')


def _check_number(where: str, value: Any) -> None:
    if not isinstance(value, Real):
        raise ConfigError(f'{where}={value!r}: expected a number')


def _check_words(hook: CheckpointHook, runner: Runner) -> None:
    """It takes every setting, and gives those that are not its own to the runner when it saves."""
    taken = inspect.signature(runner.save_checkpoint).parameters
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return
    # What mmengine's runner takes is given by the hook itself.
    free = taken.keys() - inspect.signature(Runner.save_checkpoint).parameters.keys()
    for key in getattr(hook, 'args', {}):
        if key not in free:
            known = settings_of(type(hook))
            raise ConfigError(unknown('CheckpointHook has no setting', key, known, ''))


def _figures(key: str, runner: Runner) -> list[str] | None:
    """Names of the figures that an evaluator of a config gives; None where not all are known.

    Raises:
        ConfigError: If a metric could not compute its own, or two have the same.
    """
    evaluator = runner.cfg.get(key)
    several = isinstance(evaluator, list | tuple)
    names: list[str] = []
    known = _metrics_alone(runner)
    for i, metric in enumerate(evaluator if several else [evaluator]):
        where = f'{key}.{i}' if several else key
        own = _figures_of(where, metric, runner)
        known = known and own is not None
        for name in own or ():
            if name in names:
                raise ConfigError(
                    f'{where} gives the figure {name!r}, as one before it does: expected a prefix '
                    'of its own, for example prefix="second"'
                )
        names += own or ()
    return names if known else None


def _metrics_alone(runner: Runner) -> bool:
    """Whether nothing of the user's own can add a figure to those of the metrics."""
    hooks = [h for h in runner.hooks if type(h).after_val_epoch is not Hook.after_val_epoch]
    classes = [type(plain_model(runner)), *map(type, hooks)]
    return all(map(_is_of_library, classes)) and not _is_own(
        runner.cfg.get('val_cfg') or {}, 'type', LOOPS
    )


def _figures_of(where: str, metric: Any, runner: Runner) -> list[str] | None:
    if not isinstance(metric, Mapping) or 'metrics' in metric:  # an evaluator of another class
        return None
    cls = class_of(METRICS, metric.get('type'))
    figures = FIGURES.get(cls.__name__) if cls is not None and _is_of_library(cls) else None
    names = figures(where, metric, cls, runner) if figures else None
    prefix = metric.get('prefix') or getattr(cls, 'default_prefix', None)
    return None if names is None else [f'{prefix}/{name}' if prefix else name for name in names]


def _iou_figures(
    where: str, metric: Mapping[str, Any], cls: Any, _: Runner
) -> Sequence[str] | None:
    """Those of mmseg's ``IoUMetric``: asked of itself, with one pixel of one class."""
    if metric.get('format_only'):
        return None
    words = {name: metric.get(name, default_of(cls, name)) for name in ('nan_to_num', 'beta')}
    given = metric.get('iou_metrics', default_of(cls, 'iou_metrics'))
    try:
        found = cls.total_area_to_metrics(*torch.ones(4, 1), given, **words)
    except (KeyError, TypeError):
        told = ', '.join(f'{name}={value!r}' for name, value in words.items() if name in metric)
        raise ConfigError(
            f'{where}.iou_metrics={given!r}: {cls.__name__} cannot compute it'
            f'{f" with {told}" if told else ""}: expected some of mIoU, mDice, mFscore'
        ) from None
    return [name if name == 'aAcc' else f'm{name}' for name in found]


def _top_figures(
    where: str, metric: Mapping[str, Any], cls: Any, runner: Runner
) -> Sequence[str] | None:
    """Those of mmpretrain's ``Accuracy``."""
    given = metric.get('topk', default_of(cls, 'topk'))
    tops = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    if not tops or not all(isinstance(top, Integral) for top in tops):
        raise ConfigError(f'{where}.topk={given!r}: expected an integer of at least 1, or several')
    head = getattr(plain_model(runner), 'head', None)
    if not _is_of_library(type(head)):
        return None  # whose predictions may have no scores: then there is one figure alone
    classes = getattr(head, 'num_classes', None)
    if isinstance(classes, int) and max(tops) > classes:
        raise ConfigError(
            f'{where}.topk={given!r}: the head has {classes} classes, so that the best {max(tops)} '
            'are no figure: expected at most as many, for example topk=1'
        )
    thrs = metric.get('thrs', default_of(cls, 'thrs'))
    if isinstance(thrs, Iterable) and not isinstance(thrs, str | Tensor) and len(list(thrs)) > 1:
        return None  # a figure for each of them, and of each top
    return [f'top{top}' for top in tops]


FIGURES: dict[str, Callable[..., Sequence[str] | None]] = {
    'IoUMetric': _iou_figures,
    'Accuracy': _top_figures,
}
