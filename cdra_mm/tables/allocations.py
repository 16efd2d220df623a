"""What each part of an allocation is worth: short trainings on small data, side by side.

Scores are of the head with which the training begins: as it was drawn or, for variants that end in
``_fitted``, fitted first on the features of the frozen backbone. Everything is chosen and compared
on validation images; no test image is touched. Every run is a line of the JSON file, and a run
that is there is not run again.

python -m cdra_mm.tables.allocations --weights deit_tiny.safetensors --vtab VTAB/caltech101 \
    --dense camvid:11 vnc_em --seeds 0 1 --runs runs.jsonl
python -m cdra_mm.tables.allocations --runs runs.jsonl --against lora
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import torch
from torch import Tensor, nn

from cdra_mm.benchmark.small_tasks import Task, read_dense, read_vtab
from cdra_mm.benchmark.small_training import (
    SmallModel,
    batches_of,
    deit_tiny,
    fit_small_head,
    sample_losses,
    small_loss,
)
from cdra_mm.columns import aligned
from cdra_mm.core import Plan, apply_plan, estimate_scores
from cdra_mm.core.planning.energy import EnergyRules, plan_by_energy, start_of
from cdra_mm.core.scoring.mean_gradients import mean_gradients
from cdra_mm.errors import ConfigError
from cdra_mm.methods import make_method
from cdra_mm.methods.base import Request
from cdra_mm.spelling import unknown

__all__ = ['VARIANTS', 'Setting', 'Variant', 'compare', 'main']

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
        model.train()
        losses: list[float] = []
        order = self._order()[1]
        for indices in batches_of(len(images), self.batch, self.iterations, order):
            loss = small_loss(model(images[indices]), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        metric, val_loss = self.validate(model)
        last = losses[-20:]
        return {
            'metric': metric,
            'val_loss': val_loss,
            'train_loss': fmean(last),
            'params': plan.num_trainable,
        }

    @torch.no_grad()
    def validate(self, model: SmallModel) -> tuple[float, float]:
        """Metric in percent and loss on the validation images."""
        model.eval()
        logits = torch.cat([model(part) for part in self.task.val[0].split(32)])
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
        chosen = self._order()[0][:SCORED]
        return [(images[part], labels[part]) for part in chosen.split(SCORED_AT_A_TIME)]

    def _order(self) -> tuple[Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(self.task.train[0]), generator=generator), generator


def compare(runs: Sequence[Mapping[str, Any]], against: str) -> str:
    """A table: the best rate of each variant by its validation metric, and paired differences.

    The rate is chosen for each task with all seeds together. Differences to `against` are over
    pairs of task and seed that both have; their standard error is over these pairs.
    """
    metric: dict[tuple[str, str], dict[float, dict[int, float]]] = {}
    for run in runs:
        cell = metric.setdefault((run['variant'], run['task']), {})
        cell.setdefault(run['rate'], {})[run['seed']] = run['metric']
    best: dict[tuple[str, str], dict[int, float]] = {}
    edges: dict[str, list[str]] = {}
    for (variant, task), cells in metric.items():
        seeds = max(map(len, cells.values()))
        full = {rate: found for rate, found in cells.items() if len(found) == seeds}
        rate = max(full, key=lambda r: fmean(full[r].values()))
        best[variant, task] = full[rate]
        if len(full) > 1 and rate in (min(full), max(full)):
            edges.setdefault(variant, []).append(f'{task} {rate:g}')
    tasks = list(dict.fromkeys(task for _, task in metric))
    rows = []
    for variant in dict.fromkeys(variant for variant, _ in metric):
        own = {t: best[variant, t] for t in tasks if (variant, t) in best}
        pairs = [
            value - best[against, task][seed]
            for task, found in own.items()
            for seed, value in found.items()
            if seed in best.get((against, task), {})
        ]
        error = stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float('nan')
        rows.append(
            [
                variant,
                *(f'{fmean(own[t].values()):.1f}' if t in own else '-' for t in tasks),
                f'{fmean(pairs):+.2f} ({error:.2f}), {len(pairs)}' if pairs else '-',
                ', '.join(edges.get(variant, [])) or '-',
            ]
        )
    head = ['', *tasks, f'over {against} (standard error), pairs', 'best rate at an edge']
    return aligned(head, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--runs', required=True, type=Path, help='JSON lines, a run each')
    parser.add_argument('--against', default='lora', help='variant of the paired differences')
    parser.add_argument('--weights', help="a DeiT-Tiny in timm's names")
    parser.add_argument('--vtab', nargs='*', default=[], metavar='FOLDER[:PX]')
    parser.add_argument('--dense', nargs='*', default=[], metavar='FOLDER[:VOID]')
    parser.add_argument('--variants', nargs='*', default=list(VARIANTS))
    parser.add_argument('--rates', nargs='+', type=float, default=[3e-3, 1e-2])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--iterations', type=int, default=120)
    parser.add_argument('--head-iterations', type=int, default=100, help='that fit it alone')
    parser.add_argument('--head-rate', type=float, default=1e-2, help='of the trainings')
    return parser


def _readers(given: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Task]]]:
    for text in given.vtab:
        path, _, size = text.partition(':')
        yield Path(path).name, partial(read_vtab, Path(path), int(size or 96))
    for text in given.dense:
        path, _, void = text.partition(':')
        yield Path(path).name, partial(read_dense, Path(path), 128, int(void) if void else None)


def _short(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else f'{value}'


def main(
    arguments: list[str] | None = None, *, backbone: Callable[[str, int], nn.Module] = deit_tiny
) -> None:
    """The command; see the module.

    Args:
        arguments: Of the command line.
        backbone: Makes the ViT, ``backbone(weights, size)``.

    Raises:
        ConfigError: If a variant is unknown, or there is nothing to compare.
    """
    given = _parser().parse_args(arguments)
    for name in (*given.variants, given.against):
        if name not in VARIANTS:
            raise ConfigError(unknown('variant', name, VARIANTS, ''))
    lines = given.runs.read_text().splitlines() if given.runs.exists() else []
    runs: list[dict[str, Any]] = [json.loads(line) for line in lines]
    done = {(run['task'], run['variant'], run['rate'], run['seed']) for run in runs}

    def note(**run: Any) -> None:
        runs.append(run)
        with given.runs.open('a') as file:
            file.write(json.dumps(run) + '\n')
        print(', '.join(f'{key} {_short(value)}' for key, value in run.items()), flush=True)

    for name, read in _readers(given):
        wanted = [
            (seed, variant, rate)
            for seed in given.seeds
            for variant in given.variants
            for rate in given.rates
            if (name, variant, rate, seed) not in done
        ]
        task = read() if wanted else None
        for seed in dict.fromkeys(seed for seed, _, _ in wanted):
            setting = Setting(
                cast(Task, task),
                partial(backbone, given.weights),
                seed,
                given.iterations,
                given.head_iterations,
                given.head_rate,
            )
            if (name, 'head', 0.0, seed) not in done:
                metric, loss = setting.validate(setting.model)
                fitted = setting.head_losses
                note(
                    task=name,
                    variant='head',
                    rate=0.0,
                    seed=seed,
                    metric=metric,
                    val_loss=loss,
                    losses=[fmean(fitted[at : at + 100]) for at in range(0, len(fitted), 100)],
                )
            for variant in dict.fromkeys(v for s, v, _ in wanted if s == seed):
                plan, start = setting.plan(VARIANTS[variant])
                for rate in (r for s, v, r in wanted if (s, v) == (seed, variant)):
                    begin = time.time()
                    found = setting.train(plan, start, rate, fitted=VARIANTS[variant].fitted)
                    note(
                        task=name,
                        variant=variant,
                        rate=rate,
                        seed=seed,
                        **found,
                        blocks=len(plan.blocks),
                        vectors=len(plan.vectors),
                        seconds=time.time() - begin,
                    )
    if not runs:
        raise ConfigError(f'{given.runs} has no run: give --vtab or --dense, and --weights')
    print(compare(runs, given.against))


if __name__ == '__main__':
    main()
