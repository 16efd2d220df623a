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
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdra_mm.columns import aligned
from cdra_mm.core import apply_plan, estimate_scores, make_plan
from cdra_mm.core.adapters.copied_weights import carriers, choose_product
from cdra_mm.storage import write_text

__all__ = ['WAYS', 'Task', 'train']

WAYS = ('fp32', 'weights rounded, updates apart', 'updates rounded with weights')
IGNORED = 255
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Task:
    """Images and labels of one data set, small enough to be held.

    Attributes:
        train: Images uint8 ``[N, 3, S, S]`` and labels, ``[N]`` or ``[N, S, S]``.
        val: Likewise.
        classes: Number of classes.
    """

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    classes: int

    @property
    def dense(self) -> bool:
        """Whether every pixel has a label."""
        return self.train[1].dim() == 3


class _Model(nn.Module):
    """A ViT under a linear head, on the class token or on every patch."""

    def __init__(self, weights: str, size: int, classes: int, dense: bool) -> None:
        super().__init__()
        timm: Any = importlib.import_module('timm')
        load_file = importlib.import_module('safetensors.torch').load_file
        vit = timm.create_model(
            'deit_tiny_patch16_224', num_classes=0, img_size=size, global_pool=''
        )
        state = {k: v for k, v in load_file(weights).items() if not k.startswith('head')}
        resample = importlib.import_module('timm.layers').resample_abs_pos_embed
        grid = [size // 16] * 2
        state['pos_embed'] = resample(state['pos_embed'], grid, num_prefix_tokens=1)
        vit.load_state_dict(state)
        self.backbone, self.dense = vit, dense
        self.head = nn.Linear(vit.embed_dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        tokens = self.backbone((images.float() - mean) / std)
        if not self.dense:
            return self.head(tokens[:, 0])
        side = images.shape[-1] // 16
        maps = self.head(tokens[:, 1:]).transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(maps.float(), images.shape[-2:], mode='bilinear')


def train(
    task: Task, weights: str, way: str, *, seed: int, iterations: int, batch: int, rate: float
) -> dict[str, float]:
    """Trains one task in one way.

    Args:
        task: The data.
        weights: File of the DeiT-Tiny, timm's names.
        way: A key of `WAYS`.
        seed: Seed of head, samples, factors and batches.
        iterations: Steps.
        batch: Images a step.
        rate: Of AdamW for the backbone; the head's is ten times that.

    Returns:
        The validation metric in percent (top-1, or mean IoU), and the last losses' mean.
    """
    torch.manual_seed(seed)
    images, labels = task.train
    model = _Model(weights, images.shape[-1], task.classes, task.dense)
    model.backbone.train()

    def loss_of(given: tuple[Tensor, Tensor], reduction: str = 'mean') -> Tensor:
        return F.cross_entropy(model(given[0]), given[1], ignore_index=IGNORED, reduction=reduction)

    def sample_losses(_: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
        losses = F.cross_entropy(
            model(given[0]).float(), given[1], ignore_index=IGNORED, reduction='none'
        )
        return losses.flatten(1).mean(1) if task.dense else losses

    order = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=order)[:100].split(20)
    scores = estimate_scores(
        model.backbone, [(images[c], labels[c]) for c in chosen], sample_losses
    )
    budget = sum(p.numel() for p in model.backbone.parameters()) // 200
    plan = make_plan(scores, budget_params=budget)
    apply_plan(model.backbone, plan, seed=seed)
    if way != 'fp32':
        _round_(model.backbone, updates=way == WAYS[2])
    groups = [
        {'params': [p for p in model.backbone.parameters() if p.requires_grad], 'lr': rate},
        {'params': list(model.head.parameters()), 'lr': 10 * rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [rate, 10 * rate], total_steps=iterations, pct_start=0.1
    )
    last: list[float] = []
    for indices in _batches(len(images), batch, iterations, order):
        loss = loss_of((images[indices], labels[indices]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        last.append(float(loss.detach()))
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in task.val[0].split(32)])
    metric = _metric(found, task.val[1], task.classes)
    return {'metric': metric, 'loss': sum(last[-20:]) / len(last[-20:])}


def _round_(backbone: nn.Module, *, updates: bool) -> None:
    """Has an adapted backbone compute with weights in bf16's precision, in fp32 arithmetic."""
    if not updates:
        weights = [m._parameters['weight'] for m in carriers(backbone)]
        with torch.no_grad():
            for weight in weights:
                if weight is not None and weight.dim() == 2:
                    weight.copy_(weight.bfloat16().float())
        return
    choose_product(backbone, 'copied')
    backbone.register_forward_pre_hook(_round_copies)  # after the one that makes them


def _round_copies(backbone: nn.Module, _: Any) -> None:
    for module in carriers(backbone):
        for copy in cast(Any, module).cdra.copies.values():
            copy.weight.copy_(copy.weight.bfloat16().float())


def _batches(size: int, batch: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    made = 0
    while True:
        for indices in torch.randperm(size, generator=generator).split(batch):
            if len(indices) == batch:
                yield indices
                made += 1
                if made == count:
                    return


def _metric(found: Tensor, right: Tensor, classes: int) -> float:
    """Top-1, or the mean IoU over the classes that occur, in percent."""
    if right.dim() == 1:
        return 100 * float((found == right).float().mean())
    known = right != IGNORED
    pairs = right[known] * classes + found[known]
    matrix = pairs.bincount(minlength=classes**2).view(classes, classes).double()
    union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
    return 100 * float((matrix.diag() / union)[union > 0].mean())


def read_vtab(folder: Path, size: int) -> Task:
    """A data set in VTAB's layout: its train800 and val200."""
    image = importlib.import_module('PIL.Image')

    def read(split: str) -> tuple[Tensor, Tensor]:
        lines = (folder / f'{split}.txt').read_text(encoding='utf-8').split('\n')
        pairs = [line.rsplit(' ', 1) for line in lines if line]
        pictures = [_picture(image.open(folder / name), size) for name, _ in pairs]
        return torch.stack(pictures), torch.tensor([int(label) for _, label in pairs])

    train, val = read('train800'), read('val200')
    return Task(train, val, int(torch.cat([train[1], val[1]]).max()) + 1)


def read_dense(folder: Path, size: int, void: int | None = None) -> Task:
    """A data set of ``img_dir`` and ``ann_dir``: its train and val, whole images made square."""
    image = importlib.import_module('PIL.Image')

    def read(split: str) -> tuple[Tensor, Tensor]:
        files = sorted((folder / 'img_dir' / split).iterdir())
        masks = [folder / 'ann_dir' / split / f'{file.stem}.png' for file in files]
        pictures = torch.stack([_picture(image.open(file), size) for file in files])
        labels = torch.stack(
            [
                _tensor(image.open(mask).resize((size, size), image.Resampling.NEAREST))
                for mask in masks
            ]
        ).long()
        if void is not None:
            labels[labels == void] = IGNORED
        return pictures, labels

    train, val = read('train'), read('val')
    return Task(train, val, int(train[1][train[1] != IGNORED].max()) + 1)


def _picture(picture: Any, size: int) -> Tensor:
    resized = picture.convert('RGB').resize((size, size), 2)  # bilinear
    return _tensor(resized).permute(2, 0, 1)


def _tensor(picture: Any) -> Tensor:
    numpy: Any = importlib.import_module('numpy')
    return torch.from_numpy(numpy.array(picture))


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module."""
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
    given = parser.parse_args(arguments)
    sources: dict[str, Callable[[], Task]] = {}
    for folder in given.vtab:
        sources[folder.name] = lambda folder=folder: read_vtab(folder, given.sizes[0])  # type: ignore[misc]
    for text in given.dense:
        path, _, void = text.partition(':')
        sources[Path(path).name] = lambda path=path, void=void: read_dense(  # type: ignore[misc]
            Path(path), given.sizes[1], int(void) if void else None
        )
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, read in sources.items():
        task = read()
        results[name] = {way: [] for way in WAYS}
        for seed in given.seeds:
            for way in WAYS:
                run = train(
                    task,
                    given.weights,
                    way,
                    seed=seed,
                    iterations=given.iterations,
                    batch=given.batches[task.dense],
                    rate=given.rate,
                )
                results[name][way].append(run)
                print(f'{name}, seed {seed}, {way}: {run}', flush=True)
        if given.json:
            write_text(given.json, json.dumps(results, indent=1) + '\n')
    print(
        aligned(
            ['', *WAYS],
            [
                [
                    name,
                    *(' '.join(f'{run["metric"]:.1f}' for run in runs) for runs in found.values()),
                ]
                for name, found in results.items()
            ],
        )
    )


if __name__ == '__main__':
    main()
