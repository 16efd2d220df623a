"""Where the squared gradients of scored operations are added up (`scored_ops`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from cdra_mm.errors import ScoreError

from .sample_check import SampleCheck
from .score_sums import ScoreSums
from .squares import add_squares
from .vector_squares import VectorSquares

__all__ = ['ALL', 'Shift', 'SquareSink']

ALL = slice(None)


class Shift(NamedTuple):
    """A scored vector that is added to the output of an operation, or a part of it.

    Attributes:
        name: Key of the sink's sums.
        columns: Channels of the output that it is added to.
        rows: Entries of the named vector that are added there.
    """

    name: str
    columns: slice = ALL
    rows: slice = ALL


class SquareSink:
    """Sums ``statistic`` over batches, for each parameter.

    ``per_sample`` adds ``sum_b (dL_b/dW)^2``; ``per_batch`` adds
    ``(1/B sum_b dL_b/dW)^2``, which is what SPT's released code does.

    A backward through scored operations has one of three purposes, and by itself the last:
    to `add` squares, to `look` at which entries belong to which sample, or to get past them
    to a parameter that is used in another way.

    Attributes:
        batch_size: B of the batch in flight; set before its backward.
        sums: Where the squares are added up.
        finite: Per sample, whether all its output gradients in the last `add` were finite; None
            where there were none.
        check: What is known of the samples' places in the activations.
    """

    def __init__(self, per_sample: bool, sums: ScoreSums) -> None:
        self.per_sample, self.sums = per_sample, sums
        self.batch_size = 0
        self.finite: Tensor | None = None
        self.check = SampleCheck()
        self._purpose = ''
        self._vectors = VectorSquares(per_sample, sums, 0)
        self._only: set[str] | None = None
        self._sample: int | None = None

    @property
    def needs_places(self) -> bool:
        """Whether the squares depend on which entries belong to which sample."""
        return self.per_sample and self.batch_size > 1

    @contextmanager
    def add(self, only: set[str] | None) -> Iterator[None]:
        """In here a backward adds squares.

        Args:
            only: Of these parameters; the others' are noted as woken where they are not zero.
                None for all.
        """
        self._only = only
        self._vectors = VectorSquares(self.per_sample, self.sums, self.batch_size)
        with self._for('add'):
            yield
        self.finite = self._vectors.add()

    @contextmanager
    def look(self, sample: int | None) -> Iterator[None]:
        """In here a backward of one sample's loss, or of a mean loss (None), fills `check`."""
        with self._for('look'):
            self._sample = sample
            yield

    @contextmanager
    def _for(self, purpose: str) -> Iterator[None]:
        self._purpose = purpose
        try:
            yield
        finally:
            self._purpose = ''

    def takes(self, names: Sequence[str], grad: Tensor) -> bool:
        """Whether the squares of an operation are to be added; looks at its gradient otherwise."""
        if self._purpose == 'look' and self.needs_places:
            if self._sample is None:
                self.check.see_shape(names, grad, self.batch_size)
            else:
                self.check.see_sample(names, grad, self.batch_size, self._sample)
        if self._purpose != 'add':
            return False
        if self._only is None or self._only.issuperset(names):
            return True
        if not self.check.knows(names) and bool(grad.any()):
            self.check.woken.update(names)
        return False

    def add_matrix(self, name: str, rows: slice, x: Tensor, grad: Tensor) -> None:
        """Adds the squares of ``dY_b^T X_b``; x ``[B, T, I]``, grad ``[B, T, O]``."""
        if not self.per_sample:  # the batch's mean gradient is that of one sample with all tokens
            x, grad = x.flatten(0, 1)[None], grad.flatten(0, 1)[None] / self.batch_size
        with self.sums.open(name, rows) as total:
            add_squares(total, x, grad)

    def add_vector(self, name: str, grads: Tensor) -> None:
        """Adds the squares of per-sample gradients, fp32 ``[B, length]``, when `add` ends."""
        self._vectors.note(grads, [(name, ALL, ALL)])

    def add_shifts(self, shifts: tuple[Shift, ...], grad: Tensor) -> None:
        """Adds the squares of biases' gradients, grad ``[B, T, O]``, and sees which are finite.

        When `add` ends. Without a shift (a layer with no bias, or none that is scored) it only
        sees.
        """
        uses = [(shift.name, shift.rows, shift.columns) for shift in shifts]
        self._vectors.note(grad.sum(1, dtype=torch.float32), uses)

    def per_sample_view(self, tensor: Tensor, name: str) -> Tensor:
        """``[B, ..., n]`` or windows ``[B * windows, ..., n]`` as ``[B, T, n]``.

        What does not fit is ``[1, T, n]`` for ``per_batch``.
        """
        if tensor.dim() < 2 or tensor.shape[0] % self.batch_size:
            if not self.per_sample:  # the sum over all samples is asked for, wherever they lie
                return tensor.reshape(1, -1, tensor.shape[-1])
            raise ScoreError(
                f'{name} is used on an input of shape {(*tensor.shape[:-1], "...")} in a batch of '
                f'{self.batch_size}, and was not before: its first dimension must be the sample; '
                'leave this weight out'
            )
        return tensor.reshape(self.batch_size, -1, tensor.shape[-1])
