"""Does it cost accuracy that an update is rounded with its weight? Short trainings, side by side.

Every task is trained with the same plan, start, batches and rate in three ways: in fp32; with base
weights rounded to bf16 and updates apart, as factors in a bf16 product are; with updates rounded
together with their weights, as copies in bf16 are (`choose_product`). The arithmetic is fp32 in
all of them, so that nothing else differs. What is compared is the validation metric of a DeiT-Tiny
under a linear head.

python -m cdra_mm.benchmark.rounding --weights deit_tiny.safetensors --vtab VTAB/caltech101 \
    --dense camvid cwfid --seeds 0 1 --json rounding.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cdra_mm.columns import aligned
from cdra_mm.core import Plan, apply_plan, estimate_scores, make_plan
from cdra_mm.core.adapters.copied_weights import carriers, choose_product
from cdra_mm.storage import write_text

from .small_tasks import Task, read_dense, read_vtab
from .small_training import (
    SmallModel,
    batches_of,
    deit_tiny,
    drawn_order,
    sample_losses,
    train_small,
    validation_logits,
)

__all__ = ['WAYS', 'Training', 'main']

WAYS = ('fp32', 'weights rounded, updates apart', 'updates rounded with weights')
SCORED, SCORED_AT_A_TIME = 100, 20


@dataclass(frozen=True)
class Training:
    """One task with one seed, the same for every way.

    Attributes:
        task: The data.
        backbone: Makes a ViT with its pretrained weights, for images of a size.
        seed: Of head, samples, factors and batches.
        iterations: Steps.
        batch: Images a step.
        rate: Of AdamW for the backbone; the head's is ten times that.
    """

    task: Task
    backbone: Callable[[int], nn.Module]
    seed: int
    iterations: int
    batch: int
    rate: float

    def plan(self) -> Plan:
        """CDRA's plan for half a percent of the backbone."""
        model, (images, labels) = self._model(), self.task.train
        chosen, _ = drawn_order(len(images), self.seed)
        batches = [(images[c], labels[c]) for c in chosen[:SCORED].split(SCORED_AT_A_TIME)]

        scores = estimate_scores(model.backbone, batches, sample_losses(model))
        budget = sum(p.numel() for p in model.backbone.parameters()) // 200
        return make_plan(scores, budget_params=budget)

    def run(self, plan: Plan, way: str) -> dict[str, float]:
        """Trains in one of `WAYS`.

        Returns:
            The validation metric in percent (top-1, or mean IoU), and the last losses' mean.
        """
        model, (images, labels) = self._model(), self.task.train
        apply_plan(model.backbone, plan, seed=self.seed)
        if way != WAYS[0]:
            _round_(model.backbone, updates=way == WAYS[2])
        groups = [
            {'params': [p for p in model.backbone.parameters() if p.requires_grad]},
            {'params': list(model.head.parameters())},
        ]
        rates = [self.rate, 10 * self.rate]
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rates, total_steps=self.iterations, pct_start=0.1
        )
        order = drawn_order(len(images), self.seed)[1]
        batches = batches_of(len(images), self.batch, self.iterations, order)
        loss = train_small(model, images, labels, batches, optimizer, schedule)
        found = validation_logits(model, self.task).argmax(1)
        return {'metric': self.task.score(found), 'loss': loss}

    def _model(self) -> SmallModel:
        torch.manual_seed(self.seed)
        size = self.task.train[0].shape[-1]
        return SmallModel(self.backbone(size), self.task.classes, self.task.dense).train()


def _round_(backbone: nn.Module, *, updates: bool) -> None:
    """Has an adapted backbone compute with weights in bf16's precision, in fp32 arithmetic."""
    if updates:
        choose_product(backbone, 'copied')
        backbone.register_forward_pre_hook(_round_copies)  # after the one that makes them
        return
    with torch.no_grad():
        for module in carriers(backbone):
            weight = module._parameters['weight']
            if weight is not None and weight.dim() == 2:
                weight.copy_(weight.bfloat16().float())


def _round_copies(backbone: nn.Module, _: Any) -> None:
    for module in carriers(backbone):
        for made in cast(Any, module).cdra.copies.values():
            made.weight.copy_(made.weight.bfloat16().float())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--weights', required=True, help="a DeiT-Tiny in timm's names")
    parser.add_argument('--vtab', nargs='*', default=[], type=Path, metavar='FOLDER')
    parser.add_argument(
        '--dense', nargs='*', default=[], metavar='FOLDER[:VOID]', help='VOID: label to ignore'
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    parser.add_argument('--iterations', type=int, default=200)
    parser.add_argument(
        '--sizes',
        nargs=2,
        type=int,
        default=[96, 144],
        metavar='PX',
        help='sides of the images of VTAB and of the dense sets (96 144)',
    )
    parser.add_argument('--batches', nargs=2, type=int, default=[32, 8], metavar='N')
    parser.add_argument('--rate', type=float, default=1e-3)
    parser.add_argument('--json', metavar='FILE')
    return parser


def main(
    arguments: list[str] | None = None, *, backbone: Callable[[str, int], nn.Module] = deit_tiny
) -> None:
    """The command; see the module.

    Args:
        arguments: Of the command line.
        backbone: Makes the ViT, ``backbone(weights, size)``.
    """
    given = _parser().parse_args(arguments)
    readers: dict[str, Callable[[], Task]] = {}
    for folder in given.vtab:
        readers[folder.name] = partial(read_vtab, folder, given.sizes[0])
    for text in given.dense:
        path, _, void = text.partition(':')
        ignored = int(void) if void else None
        readers[Path(path).name] = partial(read_dense, Path(path), given.sizes[1], ignored)
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, read in readers.items():
        task = read()
        results[name] = {way: [] for way in WAYS}
        for seed in given.seeds:
            batch = given.batches[task.dense]
            make = partial(backbone, given.weights)
            training = Training(task, make, seed, given.iterations, batch, given.rate)
            plan = training.plan()
            for way in WAYS:
                results[name][way].append(training.run(plan, way))
                print(f'{name}, seed {seed}, {way}: {results[name][way][-1]}', flush=True)
        if given.json:
            write_text(given.json, json.dumps(results, indent=1) + '\n')
    rows = [
        [name, *(' '.join(f'{run["metric"]:.1f}' for run in runs) for runs in found.values())]
        for name, found in results.items()
    ]
    print(aligned(['', *WAYS], rows))


if __name__ == '__main__':
    main()
