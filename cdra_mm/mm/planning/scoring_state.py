"""The state of a run while it is scored, and its way back."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch import nn

from ..backbone import find_backbone
from ..host.model_patches import without_batch_augments, without_recomputation

__all__ = [
    'autocast',
    'kept_flags',
    'outputs_for_loss',
    'preserved_buffers',
    'preserved_random_state',
    'plain_forward',
]


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """The training after the pass sees the random numbers it would have seen without it."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


@contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """Nothing is computed again (see `without_recomputation`), and no samples are mixed."""
    with without_recomputation(model), without_batch_augments(model):
        yield


@contextmanager
def kept_flags(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """``requires_grad`` and ``grad`` are what they were afterwards."""
    before: list[tuple[nn.Parameter, bool, Any]] = [
        (p, p.requires_grad, p.grad) for p in parameters
    ]
    try:
        for parameter, _, _ in before:
            parameter.grad = None
        yield
    finally:
        for parameter, flag, grad in before:
            parameter.requires_grad_(flag).grad = grad


@contextmanager
def preserved_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """The modules' own buffers, those of their children left out, have their old values again."""
    before = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in before:
            module._buffers[name] = buffer.copy_(value)


@contextmanager
def outputs_for_loss(model: nn.Module) -> Iterator[None]:
    """What has a loss gives its loss what that takes, in a model that is in evaluation mode.

    A head may give its loss more in training than a prediction is made of: K-Net the maps of all
    its stages. So modules outside of the backbone that have a ``loss`` are in training mode
    themselves; the layers in them, which draw random numbers or mix samples, are not.
    """
    inside = {id(module) for module in find_backbone(model).modules()}
    owners = [
        (module, module.training)
        for module in model.modules()
        if id(module) not in inside and callable(getattr(type(module), 'loss', None))
    ]
    with preserved_buffers(module for module, _ in owners):  # EMANet's head moves its bases
        try:
            for module, _ in owners:
                module.training = True
            yield
        finally:
            for module, mode in owners:
                module.training = mode


@contextmanager
def autocast(runner: Runner) -> Iterator[None]:
    """bf16 where the run trains in it; fp16 would lose small gradients, so fp32 otherwise."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, AmpOptimWrapper) and wrapper.cast_dtype == torch.bfloat16:
        device = next(runner.model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16):
            yield
    else:
        yield
