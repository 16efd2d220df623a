"""Squared per-sample gradients of vectors (Eq. 3): biases, norms, scales.

They are small and many. Kept until the backward ends they are squared together, in a few launches
for all; one by one they took half of those of a whole pass.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from .score_sums import ScoreSums
from .squares import add_squared

__all__ = ['Use', 'VectorSquares']

# A vector by name, some of its rows, and the columns of a layer's gradients that are theirs.
Use = tuple[str, slice, slice]


class VectorSquares:
    """Per-sample gradients of one backward, until their squares are added to the sums.

    Args:
        per_sample: Whether the squares are of samples; otherwise of a batch's mean gradient.
        sums: Where they are added up.
        batch_size: B of the batch.
    """

    def __init__(self, per_sample: bool, sums: ScoreSums, batch_size: int) -> None:
        self.per_sample, self.sums, self.batch_size = per_sample, sums, batch_size
        self._kept: dict[torch.device, list[tuple[Tensor, tuple[Use, ...]]]] = {}

    def note(self, grads: Tensor, uses: Iterable[Use] = ()) -> None:
        """Keeps some for the end.

        Args:
            grads: fp32 ``[B, n]``, or ``[1, n]`` of the whole batch.
            uses: Vectors that they are the gradients of: name, its rows, and the columns that
                these are. What belongs to none is only looked at.
        """
        # Rows that are missing are zero: the sum over the batch is what it is.
        missing = self.batch_size - len(grads)
        grads = F.pad(grads, (0, 0, 0, missing)) if missing else grads
        self._kept.setdefault(grads.device, []).append((grads, tuple(uses)))

    def add(self) -> Tensor | None:
        """Adds the squares of all that was kept.

        Returns:
            Per sample, whether all its gradients were finite, ``[B]``; None if none were kept.
        """
        finite = None
        for kept in self._kept.values():
            together = torch.cat([grads for grads, _ in kept], 1)
            # A sum is NaN or infinite where a term is.
            here = together.sum(1).isfinite()
            finite = here if finite is None else finite & here.to(finite.device)
            if not self.per_sample:
                together = together.sum(0, keepdim=True).div_(self.batch_size)
            squares = together.new_zeros(together.shape[1])
            add_squared(squares, together)
            parts = torch.split(squares, [grads.shape[1] for grads, _ in kept])
            self.sums.add(
                (name, rows, part[columns])
                for part, (_, uses) in zip(parts, kept, strict=True)
                for name, rows, columns in uses
            )
        return finite
