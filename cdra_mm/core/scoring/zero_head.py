"""A head that starts at zero sends no gradient to the backbone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ['nonzero_head']

SPREAD = 0.01


@contextmanager
def nonzero_head(
    model: nn.Module, inside: Collection[nn.Parameter], seed: int, warn: Callable[[str], None]
) -> Iterator[None]:
    """Random weights in place of matrices of zeros, for the time of a pass.

    Args:
        model: The model.
        inside: The parameters of its backbone, which are left alone.
        seed: Of the weights.
        warn: Gets a line for each matrix.
    """
    known = {id(parameter) for parameter in inside}
    zeros = {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in known and parameter.dim() > 1 and not parameter.any()
    }
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in zeros.items():
        noise = torch.randn(parameter.shape, generator=generator, device=generator.device) * SPREAD
        parameter.data.copy_(noise)
        warn(
            f'{name} is all zeros, so the loss would not depend on the backbone: scored through '
            f'random weights (std {SPREAD}), which are taken out again before training'
        )
    try:
        yield
    finally:
        for parameter in zeros.values():
            parameter.data.zero_()
