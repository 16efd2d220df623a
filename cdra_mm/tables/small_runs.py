"""Short trainings of one small model on one task with one seed, by any method, in this process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from cdra_mm.benchmark.small_tasks import Task
from cdra_mm.benchmark.small_training import (
    SmallModel,
    batches_of,
    drawn_order,
    fit_small_head,
    sample_losses,
    small_loss,
    train_small,
    validation_logits,
)
from cdra_mm.core import estimate_scores
from cdra_mm.core.scoring.mean_gradients import mean_gradients

from .small_memory import Remembered
from .small_recipes import Attached, Recipe

__all__ = ['Setting', 'Trained']

SCORED, SCORED_AT_A_TIME = 200, 20
FITTED_AT = 1e-2  # the head's rate while it is fitted alone


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        metric: On the validation images, percent: top-1, or mean IoU.
        test: The same on the test images; None where the task has none.
        val_loss: Mean cross-entropy of the validation images.
        train_loss: Mean of the last losses of the training.
        params: Trained parameters of the backbone.
        kept: Of the `Remembered` images those that the pretrained head still calls what it called
            them before the training, percent; None where none were given.
    """

    metric: float
    test: float | None
    val_loss: float
    train_loss: float
    params: int
    kept: float | None = None


class Setting:
    """One task with one seed: its models, and what scores find in them.

    Args:
        task: The data.
        backbone: Makes a ViT with its pretrained weights, for images of a size.
        seed: Of head, samples, factors and batches.
        iterations: Steps of every training.
        batch: Images of a step, at most as many as there are.
        head_rate: Of the head in every training.
    """

    def __init__(
        self,
        task: Task,
        backbone: Callable[[int], nn.Module],
        seed: int,
        *,
        iterations: int,
        batch: int,
        head_rate: float = 1e-2,
    ) -> None:
        self.task, self.seed = task, seed
        self.iterations, self.head_rate = iterations, head_rate
        self.batch = min(batch, len(task.train[0]))
        torch.manual_seed(seed)
        self._models = {0: SmallModel(backbone(task.train[0].shape[-1]), task.classes, task.dense)}
        self._scores: dict[tuple[str, int], dict[str, Tensor]] = {}

    def model(self, head_iterations: int = 0) -> SmallModel:
        """The pretrained backbone under the head as it was drawn, or fitted alone so many steps."""
        if head_iterations not in self._models:
            model = copy.deepcopy(self._models[0])
            fit_small_head(
                model,
                self.task,
                iterations=head_iterations,
                batch=2 * self.batch,
                rate=FITTED_AT,
                seed=self.seed,
            )
            self._models[head_iterations] = model
        return self._models[head_iterations]

    def attach(self, recipe: Recipe) -> Attached:
        """What a recipe puts on a backbone, as scores under its head say."""
        head = recipe.head_iterations
        return recipe.attach(
            self.model(head).backbone, partial(self.scores, head_iterations=head), self.seed
        )

    def train(
        self,
        attached: Attached,
        rate: float,
        head_iterations: int = 0,
        remembered: Remembered | None = None,
    ) -> Trained:
        """Trains what is attached, the head along.

        Args:
            attached: What is trained of the backbone.
            rate: Peak of the backbone's learning rate.
            head_iterations: The head that it begins with, see `model`.
            remembered: Images to see what is forgotten by.
        """
        model = copy.deepcopy(self.model(head_iterations))
        images, labels = self.task.train
        model.backbone = attached.put(model.backbone)
        groups = [
            (list(model.head.parameters()), self.head_rate),
            *attached.groups(model.backbone, rate),
        ]
        optimizer = torch.optim.AdamW([{'params': group} for group, _ in groups], weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [peak for _, peak in groups],
            total_steps=self.iterations,
            pct_start=0.1,
            cycle_momentum=False,
        )
        order = drawn_order(len(images), self.seed)[1]
        batches = batches_of(len(images), self.batch, self.iterations, order)
        torch.manual_seed(self.seed)  # of dropout, whatever ran before
        after = attached.after_step(model.backbone)
        train_loss = train_small(model, images, labels, batches, optimizer, schedule, after)
        metric, val_loss = self.validate(model)
        kept = None if remembered is None else remembered.kept(model.backbone)
        return Trained(metric, self._test(model), val_loss, train_loss, attached.params, kept)

    def validate(self, model: SmallModel) -> tuple[float, float]:
        """Metric in percent and loss on the validation images."""
        logits = validation_logits(model, self.task)
        return self.task.score(logits.argmax(1)), float(small_loss(logits, self.task.val[1]))

    def _test(self, model: SmallModel) -> float | None:
        if self.task.test is None:
            return None
        tested = replace(self.task, val=self.task.test)
        return tested.score(validation_logits(model, tested).argmax(1))

    def scores(self, statistic: str, head_iterations: int = 0) -> dict[str, Tensor]:
        """What a method asks for (`Method.statistic`), under the head of `model`."""
        if (statistic, head_iterations) not in self._scores:
            model = self.model(head_iterations)
            find: Callable[..., dict[str, Tensor]] = (
                mean_gradients
                if statistic == 'mean_gradient'
                else partial(estimate_scores, statistic=statistic)
            )
            found = find(model.backbone, self._scored(), sample_losses(model))
            self._scores[statistic, head_iterations] = found
        return self._scores[statistic, head_iterations]

    def _scored(self) -> list[tuple[Tensor, Tensor]]:
        images, labels = self.task.train
        chosen = drawn_order(len(images), self.seed)[0][:SCORED]
        return [(images[part], labels[part]) for part in chosen.split(SCORED_AT_A_TIME)]
