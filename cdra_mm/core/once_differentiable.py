"""Torch's `once_differentiable`, without its cost where nothing asks for a second derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

__all__ = ['once_differentiable']

Backward = Callable[..., Any]


def once_differentiable(backward: Backward) -> Backward:
    """Of the backward of an autograd function: its results cannot be differentiated.

    Torch's own enters a context in each call, of which a step makes one for each layer. Gradients
    are off in a backward already, unless its graph is asked for (``create_graph``).
    """
    guarded: Backward = torch.autograd.function.once_differentiable(backward)

    @functools.wraps(backward)
    def once(ctx: Any, *grads: Any) -> Any:
        return (guarded if torch.is_grad_enabled() else backward)(ctx, *grads)

    return once
