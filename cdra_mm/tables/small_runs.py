"""Short trainings of one small model on one task with one seed, by any method, in this process."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

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
from cdra_mm.core import estimate_scores, merge_adapters, remove_adapters
from cdra_mm.core.scoring.mean_gradients import mean_gradients

from .small_memory import Remembered
from .small_recipes import Attached, Recipe, Scores
from .small_trials import SmallTrials

__all__ = ['Setting', 'Trained']

SCORED, SCORED_AT_A_TIME = 200, 20
FITTED_AT = 1e-2  # the head's rate while it is fitted alone
MOMENTUM = (0, 5, 10, 20)  # steps of the head over which gradients are averaged


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
        device: Where models and images lie. What is drawn is drawn on the CPU.
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
        device: str = 'cpu',
    ) -> None:
        self.task, self.seed = task.to(device), seed
        self.iterations, self.head_rate = iterations, head_rate
        self.batch = min(batch, len(task.train[0]))
        torch.manual_seed(seed)
        model = SmallModel(backbone(task.train[0].shape[-1]), task.classes, task.dense)
        self._models = {0: model.to(device)}
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
        scores = partial(self.scores, head_iterations=head)
        return self._attached(recipe, self.model(head), scores)

    def _attached(self, recipe: Recipe, model: SmallModel, scores: Scores) -> Attached:
        trials = SmallTrials(
            model, self.task, seed=self.seed, batch=self.batch, head_rate=self.head_rate
        )
        return recipe.attach(model.backbone, scores, self.seed, trials)

    def train(
        self,
        attached: Attached,
        rate: float,
        recipe: Recipe,
        remembered: Remembered | None = None,
    ) -> Trained:
        """Trains what is attached, the head along.

        Args:
            attached: What is trained of the backbone.
            rate: Peak of the backbone's learning rate.
            recipe: What it comes from: the head to begin with, and what changes meanwhile.
            remembered: Images to see what is forgotten by.
        """
        model = copy.deepcopy(self.model(recipe.head_iterations))
        images, labels = self.task.train
        order = drawn_order(len(images), self.seed)[1]
        batches = batches_of(len(images), self.batch, self.iterations, order)
        begin, before = 0, None
        for end in sorted({recipe.again, self.iterations} - {0}):
            if begin:
                merge_adapters(model.backbone)
                remove_adapters(model.backbone)
                attached = self._attached(recipe, model, partial(self._found, model))
            model.backbone = attached.put(model.backbone)
            optimizer, schedule = self._optimizer(model, recipe, rate, begin, before)
            torch.manual_seed(self.seed)  # of dropout, whatever ran before
            after = attached.after_step(model.backbone)
            part = islice(batches, end - begin)
            train_loss = train_small(model, images, labels, part, optimizer, schedule, after)
            begin, before = end, optimizer
        metric, val_loss = self.validate(model)
        kept = None if remembered is None else remembered.kept(model.backbone)
        return Trained(metric, self._test(model), val_loss, train_loss, attached.params, kept)

    def _optimizer(
        self,
        model: SmallModel,
        recipe: Recipe,
        rate: float,
        begin: int,
        before: torch.optim.Optimizer | None,
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """One cycle for head and backbone from a step on; what the head had gathered is kept."""
        head = list(model.head.parameters())
        groups = [(head, self.head_rate), *recipe.groups(model.backbone, rate)]
        optimizer = torch.optim.AdamW([{'params': group} for group, _ in groups], weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [peak for _, peak in groups],
            total_steps=self.iterations,
            pct_start=0.1,
            cycle_momentum=False,
        )
        if before is not None:
            optimizer.state.update({parameter: before.state[parameter] for parameter in head})
        with warnings.catch_warnings():  # it wants a step of the optimizer before each of its own
            warnings.filterwarnings('ignore', message='.*lr_scheduler.step\\(\\)')
            for _ in range(begin):
                schedule.step()
        return optimizer, schedule

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
        """What a method asks for, under the head of `model`.

        Args:
            statistic: A `Method.statistic`, or of gradients ``'signal'``: the mean one over the
                root of the mean square of single samples', or ``'momentum'``: the average of the
                mean ones under heads that were fitted for 0 to 20 steps more.
            head_iterations: See `model`.
        """
        key = statistic, head_iterations
        if key not in self._scores:
            if statistic == 'momentum':
                each = [self.scores('mean_gradient', head_iterations + n) for n in MOMENTUM]
                names = each[0]
                found = {name: torch.stack([one[name] for one in each]).mean(0) for name in names}
            elif statistic == 'signal':
                found = _signal(partial(self.scores, head_iterations=head_iterations))
            else:
                found = self._found(self.model(head_iterations), statistic)
            self._scores[key] = found
        return self._scores[key]

    def _found(self, model: SmallModel, statistic: str) -> dict[str, Tensor]:
        """A statistic of a model's own gradients."""
        if statistic == 'signal':
            return _signal(partial(self._found, model))
        find: Callable[..., dict[str, Tensor]] = (
            mean_gradients
            if statistic == 'mean_gradient'
            else partial(estimate_scores, statistic=statistic)
        )
        return find(model.backbone, self._scored(), sample_losses(model))

    def _scored(self) -> list[tuple[Tensor, Tensor]]:
        images, labels = self.task.train
        chosen = drawn_order(len(images), self.seed)[0][:SCORED]
        return [(images[part], labels[part]) for part in chosen.split(SCORED_AT_A_TIME)]


def _signal(scores: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    """See `Setting.scores`."""
    means, squares = scores('mean_gradient'), scores('per_sample')
    tiny = torch.finfo(torch.float32).tiny
    return {name: g / squares[name].sqrt().clamp_min(tiny) for name, g in means.items()}
