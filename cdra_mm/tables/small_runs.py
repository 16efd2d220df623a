"""Short trainings of one small model on one task with one seed, by any method, in this process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

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
from cdra_mm.core import Plan, apply_plan, estimate_scores
from cdra_mm.core.planning.energy import EnergyRules, plan_by_energy, start_of
from cdra_mm.core.scoring.mean_gradients import mean_gradients
from cdra_mm.methods import make_method
from cdra_mm.methods.base import Request

__all__ = ['Recipe', 'Setting', 'Trained']

SCORED, SCORED_AT_A_TIME = 200, 20
FITTED_AT = 1e-2  # the head's rate while it is fitted alone


@dataclass(frozen=True)
class Recipe:
    """What is trained, and from where.

    Attributes:
        method: A method of the package with its settings.
        rules: Of gradient energy in place of the method's, which say less; None for the method's.
        start: Whether the factors begin along the mean gradient of their blocks, whatever the
            method.
        head_iterations: Steps that fit the head alone before scores and training; 0 leaves it as
            it was drawn.
    """

    method: Mapping[str, Any]
    rules: EnergyRules | None = None
    start: bool = False
    head_iterations: int = 0


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        metric: On the validation images, percent: top-1, or mean IoU.
        test: The same on the test images; None where the task has none.
        val_loss: Mean cross-entropy of the validation images.
        train_loss: Mean of the last losses of the training.
        params: Trained parameters of the backbone.
    """

    metric: float
    test: float | None
    val_loss: float
    train_loss: float
    params: int


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

    def plan(self, recipe: Recipe) -> tuple[Plan, Mapping[str, Tensor]]:
        """What a recipe trains, and where its factors begin."""
        head = recipe.head_iterations
        backbone = self.model(head).backbone
        method = make_method(recipe.method)
        if recipe.rules is not None:
            budget = sum(p.numel() for p in backbone.parameters()) // 200
            plan = plan_by_energy(self.scores('mean_gradient', head), budget, recipe.rules)
        else:
            scores = self.scores(method.statistic, head) if method.needs_scores else {}
            plan = cast(Plan, method.plan(Request(backbone, scores=scores)))
        if recipe.start:
            return plan, start_of(plan, self.scores('mean_gradient', head))
        if not method.needs_start:
            return plan, {}
        return plan, method.first_factors(plan, self.scores('mean_gradient', head))

    def train(
        self, plan: Plan, start: Mapping[str, Tensor], rate: float, head_iterations: int = 0
    ) -> Trained:
        """Trains by a plan, the head along.

        Args:
            plan: What is trained of the backbone.
            start: Where factors begin, see `apply_plan`.
            rate: Peak of the backbone's learning rate.
            head_iterations: The head that it begins with, see `model`.
        """
        model = copy.deepcopy(self.model(head_iterations))
        images, labels = self.task.train
        apply_plan(model.backbone, plan, seed=self.seed, start=start)
        groups = [
            {'params': list(model.head.parameters())},
            {'params': [p for p in model.backbone.parameters() if p.requires_grad]},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [self.head_rate, rate],
            total_steps=self.iterations,
            pct_start=0.1,
            cycle_momentum=False,
        )
        order = drawn_order(len(images), self.seed)[1]
        batches = batches_of(len(images), self.batch, self.iterations, order)
        torch.manual_seed(self.seed)  # of dropout, whatever ran before
        train_loss = train_small(model, images, labels, batches, optimizer, schedule)
        metric, val_loss = self.validate(model)
        return Trained(metric, self._test(model), val_loss, train_loss, plan.num_trainable)

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
