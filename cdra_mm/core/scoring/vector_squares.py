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

__all__ = ['VectorSquares']


class VectorSquares:
    """Per-sample gradients of one backward, until their squares are added to the sums.

    Args:
        per_sample: Whether the squares are of samples; otherwise of a batch's mean gradient.
        sums: Where they are added up.
        batch_size: B of the batch.
    """

    def __init__(self, per_sample: bool, sums: ScoreSums, batch_size: int) -> None:
        self.per_sample, self.sums, self.batch_size = per_sample, sums, batch_size
        self._grads: list[Tensor] = []
        self._uses: list[tuple[int, str, slice, slice]] = []

    def note(self, grads: Tensor, uses: Iterable[tuple[str, slice, slice]] = ()) -> None:
        """Keeps some for the end.

        Args:
            grads: fp32 ``[B, n]``, or ``[1, n]`` of the whole batch.
            uses: Vectors that they are the gradients of: name, its rows, and the columns that
                these are. What belongs to none is only looked at.
        """
        # Rows that are missing are zero: the sum over the batch is what it is.
        missing = self.batch_size - len(grads)
        self._uses += [(len(self._grads), *use) for use in uses]
        self._grads.append(F.pad(grads, (0, 0, 0, missing)) if missing else grads)

    def add(self) -> Tensor | None:
        """Adds the squares of all that was kept.

        Returns:
            Per sample, whether all its gradients were finite, ``[B]``; None if none were kept.
        """
        finite = None
        for device in dict.fromkeys(grads.device for grads in self._grads):
            here = self._add_on(device)
            finite = here if finite is None else finite & here.to(finite.device)
        return finite

    def _add_on(self, device: torch.device) -> Tensor:
        starts: dict[int, int] = {}
        kept: list[Tensor] = []
        width = 0
        for index, grads in enumerate(self._grads):
            if grads.device == device:
                starts[index] = width
                width += grads.shape[1]
                kept.append(grads)
        together = torch.cat(kept, 1)
        # A sum is NaN or infinite where a term is.
        finite = together.sum(1).isfinite()
        if not self.per_sample:
            together = together.sum(0, keepdim=True).div_(self.batch_size)
        squares = together.new_zeros(width)
        add_squared(squares, together)
        totals, parts = [], []
        for index, name, rows, columns in self._uses:
            if index in starts:
                begin, end, _ = columns.indices(self._grads[index].shape[1])
                part = squares[starts[index] + begin : starts[index] + end]
                if self.sums.in_place:
                    totals.append(self.sums[name][rows])
                    parts.append(part)
                    continue
                with self.sums.open(name, rows) as total:
                    total += part
        if totals:
            torch._foreach_add_(totals, parts)  # one launch for many
        return finite
