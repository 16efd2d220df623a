"""Scores that look like real ones, to plan on before there are any."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['synthetic_scores']


def synthetic_scores(
    shapes: dict[str, tuple[int, ...]], *, seed: int = 0, device: str = 'cpu'
) -> dict[str, Tensor]:
    """Log-normal scores whose matrices have sensitive rows and, more so, columns.

    Made in place: nothing but the scores is held.
    """
    generator = torch.Generator(device).manual_seed(seed)
    scores = {}
    for name, shape in shapes.items():
        score = torch.empty(shape, device=device).normal_(generator=generator)
        if len(shape) == 2:
            score += torch.randn(shape[0], 1, device=device, generator=generator)
            score += 1.5 * torch.randn(1, shape[1], device=device, generator=generator)
        score += torch.randn((), device=device, generator=generator)  # tensors differ, too
        scores[name] = score.exp_().mul_(1e-8)
    return scores
