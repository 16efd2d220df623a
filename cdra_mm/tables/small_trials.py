"""A short training as the place where a method tries out plans before it decides (NOAH's)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor

from cdra_mm.benchmark.small_tasks import Task
from cdra_mm.benchmark.small_training import (
    SmallModel,
    batches_of,
    drawn_order,
    sample_losses,
    small_loss,
)
from cdra_mm.core import Plan
from cdra_mm.errors import DataError, ScoreError
from cdra_mm.methods import SharedAdapters

__all__ = ['SmallTrials']

BACKBONE_RATE = 1e-2  # of a supernet, before `lr_mult`: plans are made once for all rates


class SmallTrials:
    """See `cdra_mm.methods.Trials`: what `cdra_mm.mm.planning` does in a run, in memory.

    Args:
        model: Where the supernet begins; stays as it is.
        task: Of its training images some are held out.
        seed: Of all that is random.
        batch: Images of a step.
        head_rate: Of the head, before `lr_mult`.
    """

    def __init__(
        self, model: SmallModel, task: Task, *, seed: int, batch: int, head_rate: float
    ) -> None:
        self.seed = seed
        self._start, self._task = model, task
        self._batch, self._head_rate = batch, head_rate
        self._model: SmallModel | None = None
        self._shared: SharedAdapters | None = None
        self._held_out: list[tuple[Tensor, Tensor]] = []

    def train(
        self,
        largest: Plan,
        draw: Callable[[], Plan],
        *,
        epochs: int,
        iters: int | None,
        lr_mult: float,
        held_out: float,
        max_held_out: int,
    ) -> None:
        """See `Trials.train`; rates fall to zero along a cosine.

        Raises:
            DataError: If no image is held out, or too few are left for a batch.
            ScoreError: If the loss is not finite.
        """
        images, labels = self._task.train
        order, generator = drawn_order(len(images), self.seed)
        number = min(round(len(images) * held_out), max_held_out)
        if not number:
            raise DataError(f'held_out={held_out} of {len(images)} images is none')
        kept = order[number:]
        self._held_out = [(images[part], labels[part]) for part in order[:number].split(32)]
        total = iters or epochs * (len(kept) // self._batch)
        self._model = model = copy.deepcopy(self._start)
        self._shared = SharedAdapters(model.backbone, largest, self.seed)
        adapted = chain.from_iterable(each.values() for each in self._shared.shared.values())
        groups = [
            {'params': list(model.head.parameters()), 'lr': self._head_rate * lr_mult},
            {'params': list(adapted), 'lr': BACKBONE_RATE * lr_mult},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        torch.manual_seed(self.seed)  # of dropout
        for indices in batches_of(len(kept), self._batch, total, generator):
            chosen = kept[indices]
            with self._shared.applied(draw()):
                model.train()  # the adapters of this step, too
                loss = small_loss(model(images[chosen]), labels[chosen])
                if not loss.isfinite():
                    found = float(loss.detach())
                    raise ScoreError(f'the loss of the supernet is {found}: lower supernet_lr_mult')
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()

    @torch.no_grad()
    def fitness(self, plan: Plan) -> float:
        """Top-1 accuracy of the held-out images, of dense tasks the negative mean loss."""
        assert self._model is not None and self._shared is not None, 'train comes first'
        model = self._model
        with self._shared.applied(plan):
            model.eval()
            worth = torch.cat([_worth(model, *part) for part in self._held_out])
        return float(worth.double().mean())


def _worth(model: SmallModel, images: Tensor, labels: Tensor) -> Tensor:
    """1 or 0 for each image, of dense tasks its negative loss, ``[B]``."""
    if model.dense:
        return -sample_losses(model)(model.backbone, (images, labels))
    return (model(images).argmax(1) == labels).double()
