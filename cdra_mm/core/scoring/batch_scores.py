"""The squared gradients of one batch after another (Eq. 3), each exact.

A batch takes one forward and one backward. That of a single sample is an ordinary one: its gradient
is the sample's. Otherwise, before the first squares are added, one more
backward asks whether they would be right: a parameter that gets an ordinary gradient was used
past the watch (by a scripted function, an extension), and one whose activations mix the samples
(`sample_check`) would get those of several in one square. Both, and what the watch itself has
seen used in an unknown way, are scored by `one_by_one`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from cdra_mm.errors import ScoreError

from .losses import LossFn, finite_losses
from .one_by_one import (
    add_gradients,
    add_squares_one_by_one,
    all_finite,
    gradient_not_finite,
    named,
    warning_of,
)
from .ordinary_pass import OrdinaryPass
from .parameter_watch import ParameterWatch
from .square_sink import SquareSink
from .watched_uses import HANDLERS

__all__ = ['BatchScores']


class BatchScores:
    """Adds the squares of each batch to a sink.

    Args:
        model: The model, in evaluation mode.
        loss_fn: See `estimate_scores`.
        parameters: What is scored, by the names of ``sink.sums``; each requires grad.
        sink: Where the squares go.
        warn: Called with a line about parameters that are scored one sample at a time.

    Attributes:
        ordinary: What takes batches of one sample; to be entered while batches are added.
        num_samples: Samples so far.
        num_batches: Batches so far.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        parameters: Mapping[str, nn.Parameter],
        sink: SquareSink,
        warn: Callable[[str], None],
    ) -> None:
        self.model, self.loss_fn, self.sink, self.warn = model, loss_fn, sink, warn
        self.parameters = dict(parameters)
        self.watch = ParameterWatch({id(p): name for name, p in parameters.items()}, sink, HANDLERS)
        self.ordinary = OrdinaryPass(parameters, sink.sums, squared=True)
        self.num_samples = self.num_batches = 0
        self._looked: set[bool] = set()  # with a need for the samples' places, and without
        self._told: set[str] = set()

    def add(self, batch: Any) -> None:
        """Adds the squares of a batch.

        Raises:
            ScoreError: If the losses are none, a loss or a gradient is not finite, or a
                parameter cannot be scored from the mean loss of a batch.
        """
        with torch.enable_grad():
            if not self._add_sample(batch):
                losses = self._forward(batch)
                if losses.requires_grad:
                    losses = self._look_first(batch, losses)
                    self._add_squares(batch, losses)
        self.num_samples += self.sink.batch_size
        self.num_batches += 1

    def _add_sample(self, batch: Any) -> bool:
        """Adds the squares of a batch that is one sample, as the last one was.

        Without a watch, whose operations cost a fifth of a small model's time.

        Returns:
            Whether it is one; nothing was added otherwise.
        """
        if not self.sink.per_sample or self.sink.batch_size != 1:
            return False
        losses, size = finite_losses(self.model, self.loss_fn(self.model, batch), self.num_samples)
        if size != 1:
            return False
        if not self.ordinary.run(losses):
            raise gradient_not_finite(self.num_samples)
        return True

    def _forward(self, batch: Any) -> Tensor:
        """The losses, ``[B]`` or ``[1]``, by scored operations where they serve."""
        while True:
            self.watch.begin()
            with self.watch:
                losses = self.loss_fn(self.model, batch)
            if self.watch.complete:
                break
        losses, size = finite_losses(self.model, losses, self.num_samples)
        self.sink.batch_size = size
        return losses

    def _look_first(self, batch: Any, losses: Tensor) -> Tensor:
        """One more backward on the first batch, before anything of it is added.

        The sample in the middle is asked, which has others before it and after it.
        """
        needs_places = self.sink.needs_places
        if {True, needs_places} & self._looked:
            return losses
        self._looked.add(needs_places)
        by_passed = self._look(losses, len(losses) // 2)
        self.watch.leave(by_passed, PAST_THE_WATCH)
        return self._again(batch, losses)

    def _look(self, losses: Tensor, sample: int) -> list[str]:
        """Fills the sink's check; gives the names of what was used past the watch."""
        alone = len(losses) == self.sink.batch_size
        loss = losses[sample] if alone and self.sink.needs_places else losses.sum()
        gradients = self._differentiate(
            loss, self.sink.look(sample if alone else None), self._watched(), keep=True
        )
        return [name for name, gradient in gradients.items() if gradient is not None]

    def _again(self, batch: Any, losses: Tensor) -> Tensor:
        """The losses, from a new forward where more parameters have to be left alone."""
        for name, reason in self.sink.check.mixed.items():
            self.watch.leave([name], reason)
        return losses if self.watch.complete else self._forward(batch)

    def _add_squares(self, batch: Any, losses: Tensor) -> None:
        sink, check, watch = self.sink, self.sink.check, self.watch
        single = not sink.needs_places  # the batch counts as one sample
        self._require_samples(losses)
        # Of a parameter without a gradient in the batch that was looked at nothing is known yet.
        only = None if single else set(check.apart)
        doubtful = not single and bool(watch.used - check.apart)
        self._add_watched(losses, only, keep=doubtful or bool(watch.alone), with_alone=single)
        if check.woken:
            woken, check.woken = check.woken, set()
            for sample in range(len(losses)):
                self._look(losses, sample)
                if check.knows(woken):
                    break
            apart = woken & check.apart - check.mixed.keys()
            if apart:
                self._add_watched(losses, apart, keep=bool(watch.alone), with_alone=False)
            watch.leave(woken - apart, 'used on activations where the samples do not lie apart')
            losses = self._again(batch, losses)
            self._require_samples(losses)
        self._tell()
        if watch.alone and not single:
            left = {name: self.parameters[name] for name in watch.alone}
            add_squares_one_by_one(losses, left, sink.sums, self.num_samples)

    def _add_watched(
        self, losses: Tensor, only: set[str] | None, *, keep: bool, with_alone: bool
    ) -> None:
        """Adds squares by one backward; those of the parameters left alone are of all samples."""
        names = [*self._watched(), *(self.watch.alone if with_alone else ())]
        gradients = self._differentiate(losses.sum(), self.sink.add(only), names, keep=keep)
        finite = self.sink.finite
        if finite is not None and not bool(finite.all()):
            raise gradient_not_finite(self.num_samples + int(torch.nonzero(~finite)[0]))
        left = {name: gradients.pop(name) for name in self.watch.alone if name in gradients}
        new = {name: PAST_THE_WATCH for name, gradient in gradients.items() if gradient is not None}
        if new:
            raise ScoreError(
                f'{named(new)}: this was not so in the first batch, whose scores would be wrong; '
                'leave it out'
            )
        size = self.sink.batch_size
        if not all_finite(left):
            raise gradient_not_finite(self.num_samples, self.num_samples + size - 1)
        add_gradients(left, self.sink.sums, 1 if self.sink.per_sample else size)

    def _differentiate(
        self, loss: Tensor, purpose: AbstractContextManager[None], names: Iterable[str], keep: bool
    ) -> dict[str, Tensor | None]:
        """Gradients that ordinary operations give these parameters, None where there is none.

        Only what lies between the loss and the scored layers is computed: no gradient of any
        other parameter.
        """
        names = list(names)
        inputs = [self.watch.anchor, *(self.parameters[name] for name in names)]
        try:
            with purpose:
                _, *gradients = torch.autograd.grad(
                    loss, inputs, retain_graph=keep, allow_unused=True
                )
        except CheckpointError as error:
            raise ScoreError(
                'activation checkpointing runs the forward again where its weights cannot be '
                'watched: switch it off while scoring'
            ) from error
        return dict(zip(names, gradients, strict=True))

    def _watched(self) -> list[str]:
        return [name for name in self.parameters if name not in self.watch.alone]

    def _require_samples(self, losses: Tensor) -> None:
        """A mean loss of several samples cannot be differentiated by sample."""
        if self.watch.alone and self.sink.needs_places and len(losses) < self.sink.batch_size:
            raise ScoreError(
                f'{len(self.watch.alone)} of {len(self.parameters)} parameters cannot be scored '
                f'from the mean loss of a batch: {named(self.watch.alone)}; let loss_fn return the '
                'losses of the samples [B], give batches of one sample, or leave them out'
            )

    def _tell(self) -> None:
        new = {n: reason for n, reason in self.watch.alone.items() if n not in self._told}
        if new:
            self._told.update(new)
            self.warn(warning_of(new, len(self.parameters)))


PAST_THE_WATCH = (
    'used past torch functions (in a scripted function, a custom autograd function or an extension)'
)
