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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from cdra_mm.columns import aligned
from cdra_mm.core import Plan, apply_plan, estimate_scores, make_plan
from cdra_mm.core.adapters.copied_weights import carriers, choose_product
from cdra_mm.storage import write_text

from .small_tasks import IGNORED, Task, read_dense, read_vtab

__all__ = ['WAYS', 'Training', 'deit_tiny', 'main']

WAYS = ('fp32', 'weights rounded, updates apart', 'updates rounded with weights')
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SCORED, SCORED_AT_A_TIME = 100, 20
PATCH = 16


def deit_tiny(weights: str, size: int) -> nn.Module:
    """A DeiT-Tiny that returns all tokens, its positions resampled to the size of the images.

    Args:
        weights: Its file, timm's names.
        size: Side of the images, pixels.
    """
    import timm
    from timm.layers import resample_abs_pos_embed

    vit: nn.Module = timm.create_model(
        'deit_tiny_patch16_224', num_classes=0, img_size=size, global_pool=''
    )
    state = {k: v for k, v in load_file(weights).items() if not k.startswith('head')}
    grid = [size // PATCH] * 2
    state['pos_embed'] = resample_abs_pos_embed(state['pos_embed'], grid, num_prefix_tokens=1)
    vit.load_state_dict(state)
    return vit


class _Model(nn.Module):
    """A ViT under a linear head, on the class token or on every patch."""

    def __init__(self, backbone: nn.Module, classes: int, dense: bool) -> None:
        super().__init__()
        self.backbone, self.dense = backbone, dense
        self.head = nn.Linear(cast(Any, backbone).embed_dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        tokens = self.backbone((images.float() - mean) / std)
        if not self.dense:
            return cast(Tensor, self.head(tokens[:, 0]))
        side = images.shape[-1] // PATCH
        maps = self.head(tokens[:, 1:]).transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(maps, images.shape[-2:], mode='bilinear')


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
        chosen, _ = self._order()
        batches = [(images[c], labels[c]) for c in chosen[:SCORED].split(SCORED_AT_A_TIME)]

        def losses(_: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
            found = _loss(model, given, 'none')
            return found.flatten(1).mean(1) if self.task.dense else found

        scores = estimate_scores(model.backbone, batches, losses)
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
        losses: list[float] = []
        for indices in self._batches(self._order()[1]):
            loss = _loss(model, (images[indices], labels[indices]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        model.eval()
        with torch.no_grad():
            found = torch.cat([model(part).argmax(1) for part in self.task.val[0].split(32)])
        return {'metric': self.task.score(found), 'loss': sum(losses[-20:]) / len(losses[-20:])}

    def _model(self) -> _Model:
        torch.manual_seed(self.seed)
        size = self.task.train[0].shape[-1]
        return _Model(self.backbone(size), self.task.classes, self.task.dense).train()

    def _order(self) -> tuple[Tensor, torch.Generator]:
        """The images to score first, and what draws the batches after them."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(self.task.train[0]), generator=generator), generator

    def _batches(self, generator: torch.Generator) -> Iterator[Tensor]:
        made = 0
        while True:
            for indices in torch.randperm(len(self.task.train[0]), generator=generator).split(
                self.batch
            ):
                if len(indices) == self.batch:
                    yield indices
                    made += 1
                    if made == self.iterations:
                        return


def _loss(model: nn.Module, given: tuple[Tensor, Tensor], reduction: str = 'mean') -> Tensor:
    return F.cross_entropy(model(given[0]), given[1], ignore_index=IGNORED, reduction=reduction)


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
        for copy in cast(Any, module).cdra.copies.values():
            copy.weight.copy_(copy.weight.bfloat16().float())


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
