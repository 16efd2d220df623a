"""The size of an adapter's update: its norm, its singular values, how many of them count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ['effective_rank', 'update_norm', 'update_spectrum']


def update_spectrum(up: Tensor, down: Tensor, scale: float = 1.0) -> Tensor:
    """The singular values of ``scale * up @ down`` (Eq. 6), without making the product.

    They are those of a matrix ``[r, r]``, of both factors' triangular parts: looking costs next to
    nothing beside a training step.

    Args:
        up: ``[|R|, r]``.
        down: ``[r, |C|]``.
        scale: Factor of the update.

    Returns:
        fp64 ``[r]`` on the CPU, largest first; nan where a factor is not finite.
    """
    tall = torch.linalg.qr(up.detach().double().cpu(), mode='r').R
    wide = torch.linalg.qr(down.detach().double().cpu().T, mode='r').R
    small = tall @ wide.T
    if not small.isfinite().all():  # of a run that diverges, which has its own error for it
        return torch.full_like(small[0], torch.nan)
    values: Tensor = torch.linalg.svdvals(small)
    return abs(scale) * values


def update_norm(up: Tensor, down: Tensor, scale: float = 1.0) -> Tensor:
    """The Frobenius norm of ``scale * up @ down``, a scalar in fp64 on their device.

    ``||U D||^2 = tr(U^T U D D^T)``: nothing of the size of the block is made.

    Args:
        up: ``[|R|, r]``.
        down: ``[r, |C|]``.
        scale: Factor of the update.
    """
    tall, wide = up.detach().double(), down.detach().double()
    square = ((tall.T @ tall) * (wide @ wide.T)).sum()
    return abs(scale) * square.clamp(min=0).sqrt()


def effective_rank(spectrum: Tensor | Sequence[float]) -> float:
    """How many directions an update really has: ``exp(-sum p ln p)`` with ``p = s / sum s``.

    (Roy and Vetterli, The effective rank, EUSIPCO 2007.)

    Args:
        spectrum: Its singular values ``s``, ``[r]``.

    Returns:
        At most ``r``; 0 where the update is zero.

    Example:
        >>> effective_rank(torch.tensor([2.0, 2.0, 0.0]))
        2.0
    """
    values = torch.as_tensor(spectrum, dtype=torch.float64, device='cpu')
    total = values.sum()
    if not total > 0:
        return 0.0
    return round(float(torch.special.entr(values / total).sum().exp()), 9)
