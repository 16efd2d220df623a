"""A short training by each of many ways to choose what is trained, all of one task and seed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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

__all__ = ['VARIANTS', 'Setting', 'Variant']

SCORED, SCORED_AT_A_TIME = 200, 20
FITTED_AT = 1e-2  # the head's rate while it is fitted alone


@dataclass(frozen=True)
class Variant:
    """One way to choose what is trained.

    Attributes:
        method: A method of the package with its settings; None for the allocation by energy.
        rules: Of the allocation by energy.
        start: Whether the factors begin along the mean gradient of their blocks.
        fitted: Whether scores are of the fitted head, and the training goes on from it; otherwise
            of the head as it was drawn.
        mixed: Whether scores are of the fitted head, and the training begins with the drawn one.
    """

    method: Mapping[str, Any] | None = None
    rules: EnergyRules = EnergyRules()
    start: bool = False
    fitted: bool = False
    mixed: bool = False


CDRA = dict(type='cdra', budget_percent=0.5)
VARIANTS = {
    'linear': Variant(dict(type='linear')),
    'bias': Variant(dict(type='bias')),
    'lora': Variant(dict(type='lora', rank=3, alpha=3)),
    'lora_start': Variant(dict(type='lora', rank=3, alpha=3), start=True),
    'eq7': Variant(CDRA),
    'count': Variant({**CDRA, 'rank_rule': 'count'}),
    'count2': Variant({**CDRA, 'rank_rule': 'count', 'rank_alpha': 2}),
    'count_start': Variant({**CDRA, 'rank_rule': 'count'}, start=True),
    'energy': Variant(),
    'energy_start': Variant(start=True),
    'energy_start_mixed': Variant(start=True, mixed=True),
    'energy_start_whole': Variant(rules=EnergyRules(sides=(1.0,)), start=True),
    'energy_start_novec': Variant(rules=EnergyRules(vectors=False), start=True),
    'energy_start_rank24': Variant(rules=EnergyRules(max_rank=24), start=True),
}
VARIANTS |= {
    f'{name}_fitted': replace(variant, fitted=True)
    for name, variant in VARIANTS.items()
    if not variant.mixed
}


class Setting:
    """One task with one seed: its model, with the head as drawn and fitted, and what scores find.

    Args:
        task: The data.
        backbone: Makes a ViT with its pretrained weights, for images of a size.
        seed: Of head, samples, factors and batches.
        iterations: Steps of every training.
        head_iterations: Steps that fit the head alone.
        head_rate: Of the head in every training.
    """

    def __init__(
        self,
        task: Task,
        backbone: Callable[[int], nn.Module],
        seed: int,
        iterations: int,
        head_iterations: int = 100,
        head_rate: float = 1e-2,
    ) -> None:
        self.task, self.seed = task, seed
        self.iterations, self.head_rate = iterations, head_rate
        self.batch = min(8 if task.dense else 16, len(task.train[0]))
        torch.manual_seed(seed)
        model = SmallModel(backbone(task.train[0].shape[-1]), task.classes, task.dense)
        self.drawn = copy.deepcopy(model)
        self.head_losses = fit_small_head(
            model,
            task,
            iterations=head_iterations,
            batch=2 * self.batch,
            rate=FITTED_AT,
            seed=seed,
        )
        self.model = model
        self._scores: dict[tuple[str, bool], dict[str, Tensor]] = {}

    def plan(self, variant: Variant) -> tuple[Plan, Mapping[str, Tensor]]:
        """What a variant trains, and where its factors begin."""
        fitted = variant.fitted or variant.mixed
        model = self.model if fitted else self.drawn
        budget = sum(p.numel() for p in model.backbone.parameters()) // 200
        if variant.method is None:
            plan = plan_by_energy(self.gradients(fitted), budget, variant.rules)
        else:
            method = make_method(variant.method)
            scores = self.squares(fitted) if method.needs_scores else {}
            plan = cast(Plan, method.plan(Request(model.backbone, scores=scores)))
        return plan, start_of(plan, self.gradients(fitted)) if variant.start else {}

    def train(
        self, plan: Plan, start: Mapping[str, Tensor], rate: float, *, fitted: bool = False
    ) -> dict[str, float]:
        """Trains by a plan, the head along; from the fitted or the drawn head.

        Returns:
            The validation metric in percent (top-1, or mean IoU), the validation loss, the mean
            of the last training losses, and the number of trained backbone parameters.
        """
        model = copy.deepcopy(self.model if fitted else self.drawn)
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
        train_loss = train_small(model, images, labels, batches, optimizer, schedule)
        metric, val_loss = self.validate(model)
        return {
            'metric': metric,
            'val_loss': val_loss,
            'train_loss': train_loss,
            'params': plan.num_trainable,
        }

    def validate(self, model: SmallModel) -> tuple[float, float]:
        """Metric in percent and loss on the validation images."""
        logits = validation_logits(model, self.task)
        return self.task.score(logits.argmax(1)), float(small_loss(logits, self.task.val[1]))

    def squares(self, fitted: bool) -> dict[str, Tensor]:
        """Mean squared gradients (Eq. 3) under the fitted or the drawn head."""
        return self._found('squares', estimate_scores, fitted)

    def gradients(self, fitted: bool) -> dict[str, Tensor]:
        """Mean gradients under the fitted or the drawn head."""
        return self._found('gradients', mean_gradients, fitted)

    def _found(self, what: str, find: Callable[..., Any], fitted: bool) -> dict[str, Tensor]:
        if (what, fitted) not in self._scores:
            model = self.model if fitted else self.drawn
            scores = find(model.backbone, self._scored(), sample_losses(model))
            self._scores[what, fitted] = scores
        return self._scores[what, fitted]

    def _scored(self) -> list[tuple[Tensor, Tensor]]:
        images, labels = self.task.train
        chosen = drawn_order(len(images), self.seed)[0][:SCORED]
        return [(images[part], labels[part]) for part in chosen.split(SCORED_AT_A_TIME)]
