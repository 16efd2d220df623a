"""Words of a config that would end a run when a step, a checkpoint or a validation is due.

OpenMMLab takes them, and looks at them for the first time then: after the scoring, after the first
epoch, with all that was trained. What is of a class of the user's own is left to it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.hooks import CheckpointHook
from mmengine.registry import METRICS
from mmengine.runner import Runner
from torch import nn

from cdra_mm.errors import ConfigError
from cdra_mm.spelling import unknown

from .config_parts import LIBRARIES
from .registry_classes import class_of, default_of, settings_of

__all__ = ['check_late_words']

CLIPPING: dict[Any, Callable[..., Any]] = {
    'norm': nn.utils.clip_grad_norm_,
    'value': nn.utils.clip_grad_value_,
}
EVALUATORS = ('val_evaluator', 'test_evaluator')


def check_late_words(runner: Runner) -> None:
    """Checks them in a runner that is built and has not begun.

    Raises:
        ConfigError: If one could not be taken.
    """
    _check_clipping(runner.cfg.get('optim_wrapper'))
    interval = (runner.cfg.get('train_cfg') or {}).get('val_interval', 1)
    _check_interval('train_cfg.val_interval', interval)
    if interval == 0:
        raise ConfigError('train_cfg.val_interval=0: expected at least 1; val_cfg=None is for none')
    figures = {key: _figures(key, runner) for key in EVALUATORS}
    for hook in runner.hooks:
        if _is_of_library(type(hook)):
            interval = getattr(hook, 'interval', None)
            if interval is not None:
                _check_interval(f'{type(hook).__name__}: interval', interval)
            if isinstance(hook, CheckpointHook):
                _check_checkpoints(hook, runner, figures['val_evaluator'])


def _is_of_library(cls: type) -> bool:
    return cls.__module__.partition('.')[0] in (*LIBRARIES, 'cdra_mm')


def _check_clipping(wrapper: Any) -> None:
    """What an optimizer wrapper hands on to torch with the first step."""
    given = wrapper.get('clip_grad') if isinstance(wrapper, Mapping) else None
    if not isinstance(given, Mapping):
        return
    clip = CLIPPING.get(given.get('type', 'norm'))
    if clip is None:
        return  # the wrapper refuses it when it is built
    where = 'optim_wrapper.clip_grad'
    limit, *others = list(inspect.signature(clip).parameters)[1:]
    words = [key for key in given if key != 'type']
    for key in words:
        if key not in (limit, *others):
            raise ConfigError(unknown(f'{where} has no setting', key, [limit, *others], ''))
    if words and limit not in words:
        raise ConfigError(f'{where} needs {limit}, which {clip.__name__} of torch clips to')


def _check_interval(where: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f'{where}={value!r}: expected an integer')


def _check_checkpoints(hook: CheckpointHook, runner: Runner, figures: Sequence[str] | None) -> None:
    """What a hook hands on to the runner, when it saves, and the figures that it keeps the best of.

    It takes every setting, and gives those that are not its own to the runner when it saves.
    """
    taken = inspect.signature(runner.save_checkpoint).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        # What mmengine's runner takes is given by the hook itself.
        free = taken.keys() - inspect.signature(Runner.save_checkpoint).parameters.keys()
        for key in getattr(hook, 'args', {}):
            if key not in free:
                known = settings_of(type(hook))
                raise ConfigError(unknown('CheckpointHook has no setting', key, known, ''))
    for name in hook.save_best or ():
        if figures and name != 'auto' and name not in figures:
            what = 'CheckpointHook: val_evaluator gives no figure to save_best'
            raise ConfigError(unknown(what, name, [*figures, 'auto'], ''))


def _figures(key: str, runner: Runner) -> list[str] | None:
    """Names of the figures that an evaluator of a config gives; None where not all are known.

    Raises:
        ConfigError: If a metric could not compute its own.
    """
    evaluator = runner.cfg.get(key)
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    if len(metrics) == 1 and isinstance(metrics[0], Mapping) and 'metrics' in metrics[0]:
        return None  # an evaluator of another class
    names: list[str] | None = []
    for metric in metrics:
        own = None
        if isinstance(metric, Mapping):
            cls = class_of(METRICS, metric.get('type'))
            if cls is not None and _is_of_library(cls) and cls.__name__ in FIGURES:
                own = list(FIGURES[cls.__name__](key, metric, cls, runner))
                prefix = metric.get('prefix') or getattr(cls, 'default_prefix', None)
                own = [f'{prefix}/{name}' if prefix else name for name in own]
        names = None if names is None or own is None else names + own
    return names


def _iou_figures(key: str, metric: Mapping[str, Any], cls: Any, _: Runner) -> Iterator[str]:
    """Those of mmseg's ``IoUMetric``: asked of itself, with one pixel of one class."""
    given = metric.get('iou_metrics', default_of(cls, 'iou_metrics'))
    try:
        found = cls.total_area_to_metrics(*torch.ones(4, 1), given)
    except (KeyError, TypeError):
        raise ConfigError(
            f'{key}.iou_metrics={given!r}: {cls.__name__} has no such figure: expected some of '
            'mIoU, mDice, mFscore'
        ) from None
    for name in found:
        yield name if name == 'aAcc' else f'm{name}'


def _top_figures(key: str, metric: Mapping[str, Any], cls: Any, runner: Runner) -> Iterator[str]:
    """Those of mmpretrain's ``Accuracy``."""
    given = metric.get('topk', default_of(cls, 'topk'))
    tops = given if isinstance(given, list | tuple) else (given,)
    classes = getattr(getattr(runner.model, 'head', None), 'num_classes', None)
    for top in tops:
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise ConfigError(
                f'{key}.topk={given!r}: expected an integer of at least 1, or several'
            )
        if isinstance(classes, int) and top > classes:
            raise ConfigError(
                f'{key}.topk={given!r}: the head has {classes} classes, so that the best {top} are '
                'no figure: expected at most as many, for example topk=1'
            )
    thrs = metric.get('thrs', default_of(cls, 'thrs'))
    thrs = thrs if isinstance(thrs, list | tuple) else (thrs,)
    for top in tops:
        for thr in thrs:
            after = '_no-thr' if thr is None else f'_thr-{thr:.2f}'
            yield f'top{top}{after if len(thrs) > 1 else ""}'


FIGURES = {'IoUMetric': _iou_figures, 'Accuracy': _top_figures}
