"""Blocks whose activations are computed again in the backward pass.

mmengine's ``activation_checkpointing`` uses torch's reentrant checkpoint, which gives the weights
of a block no gradient unless an *input* of the block wants one. With a frozen patch embedding the
input of the first blocks wants none: their adapters would never move, and only a warning would say
so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .host.model_patches import plain_forward_of

__all__ = ['keep_gradients']

_MARK = '_cdra_keeps_gradients'


def keep_gradients(model: nn.Module) -> None:
    """Makes recomputed blocks with trained weights give these their gradients, in place.

    Args:
        model: A model that has its adapters; calling it twice does no harm.
    """
    for module in model.modules():
        if plain_forward_of(module) is None or module.__dict__.get(_MARK):
            continue
        if any(parameter.requires_grad for parameter in module.parameters()):
            module.__dict__[_MARK] = True
            module.register_forward_pre_hook(_ask_for_gradient)


def _ask_for_gradient(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    tensors = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
    if not torch.is_grad_enabled() or not tensors or any(x.requires_grad for x in tensors):
        return None
    first = tensors[0]
    return tuple(x.detach().requires_grad_() if x is first else x for x in inputs)
