"""A model otherwise than it is, for a while: its forward, its features, its initialisation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

__all__ = [
    'as_single_process',
    'initialised_again',
    'is_initialising',
    'patched',
    'plain_forward_of',
    'run_loss',
    'take_files_as_they_are',
    'with_features',
    'with_forward',
    'without_batch_augments',
    'without_recomputation',
]


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An instance attribute for the moment, then exactly what was there before."""
    had, old = name in owner.__dict__, owner.__dict__.get(name)
    owner.__dict__[name] = value
    try:
        yield
    finally:
        if had:
            owner.__dict__[name] = old
        else:
            del owner.__dict__[name]


@contextmanager
def as_single_process() -> Iterator[None]:
    """Lets a loss see the samples of this process alone.

    Some heads average over processes inside their loss (the number of matched masks, say). The
    per-sample loss of a batch of one has nothing to average with, and processes with shares of
    different sizes would wait for each other in vain.
    """
    with patched(torch.distributed, 'is_initialized', lambda: False):
        yield


def with_forward(module: nn.Module, forward: Callable[..., Any]) -> Any:
    """A context in which a module runs this forward."""
    return patched(module, 'forward', forward)


def with_features(model: nn.Module, extract: Callable[..., Any]) -> Any:
    """A context in which ``extract_feat`` of a model gives what this function gives."""
    return patched(model, 'extract_feat', extract)


def plain_forward_of(module: nn.Module) -> Any:
    """The plain forward of a module that mmengine recomputes, None for any other.

    ``activation_checkpointing`` puts a wrapped function into the instance.
    """
    return getattr(module.__dict__.get('forward'), '__wrapped__', None)


@contextmanager
def without_recomputation(model: nn.Module) -> Iterator[None]:
    """No activation checkpointing: it breaks autograd.grad, and loses gradients of first blocks."""
    with ExitStack() as stack:
        for module in model.modules():
            if getattr(module, 'with_cp', False):
                stack.enter_context(patched(module, 'with_cp', False))
            plain = plain_forward_of(module)
            if plain is not None:
                stack.enter_context(with_forward(module, plain))
        yield


@contextmanager
def without_batch_augments(model: nn.Module) -> Iterator[None]:
    """No samples are mixed: mmpretrain's preprocessor does that to whole batches."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    if getattr(preprocessor, 'batch_augments', None) is None:
        yield
        return
    with patched(preprocessor, 'batch_augments', None):
        yield


def run_loss(model: Any, data: Any) -> Any:
    """The losses of a batch, however it is packed."""
    return model._run_forward(data, mode='loss')


def is_initialising(module: nn.Module) -> bool:
    """Whether ``init_weights`` is under way: it keeps its notes in every module till its end."""
    return '_params_init_info' in module.__dict__


@contextmanager
def initialised_again(backbone: Any, init_cfg: Mapping[str, Any]) -> Iterator[None]:
    """A backbone whose ``init_weights`` may run once more, with this config and without a report.

    Args:
        backbone: A module of mmengine.
        init_cfg: Takes the place of its own inside.
    """
    kept = backbone.init_cfg, backbone.is_init
    # Marked as part of a larger initialisation, which keeps its report out of the logs.
    info: dict[Any, dict[str, Any]] = defaultdict(dict)
    for name, parameter in backbone.named_parameters():
        info[parameter] = {'init_info': name, 'tmp_mean_value': parameter.data.float().mean().cpu()}
    for module in backbone.modules():
        module._params_init_info = info
    try:
        backbone.init_cfg, backbone.is_init = dict(init_cfg), False
        yield
    finally:
        backbone.init_cfg, backbone.is_init = kept
        for module in backbone.modules():
            module.__dict__.pop('_params_init_info', None)


def take_files_as_they_are(backbone: nn.Module) -> None:
    """Has mmseg's BEiT hand a checkpoint file to its load hooks without looking into it.

    It looks its own names up before. That fails for foreign names, and its interpolation left
    SciPy with 1.14; the load hook resizes instead.
    """
    backbone.__dict__['resize_rel_pos_embed'] = _state_dict_in


def _state_dict_in(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = checkpoint.get('state_dict', checkpoint)
    return found
