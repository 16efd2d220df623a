"""Three tasks on one DeiT-Tiny: street scenes, cells under a microscope, pictures of 102 kinds.

Each task gets a plan of its own (half a percent of the backbone) and a head of its own, is trained
on the shared base and written to a file of adapter and head. The files are then put on a fresh
base, which answers a batch in which every picture belongs to another task.

    python examples/many_tasks.py --weights deit_tiny.safetensors --camvid data/camvid \
        --dense data/vnc_em --caltech data/vtab-1k/caltech101
    python examples/many_tasks.py --synthetic        # random pictures, a few seconds

CamVid and the dense set are folders of `img_dir` and `ann_dir`, Caltech-101 one of VTAB-1k.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdra_mm.benchmark.small_tasks import Task, read_dense, read_vtab
from cdra_mm.benchmark.small_training import (
    MEAN,
    PATCH,
    STD,
    SmallModel,
    batches_of,
    deit_tiny,
    drawn_order,
    fit_small_head,
    sample_losses,
    train_small,
)
from cdra_mm.columns import aligned
from cdra_mm.core import MultiTask, estimate_scores, make_plan

SCORED, SCORED_AT_A_TIME = 100, 20
HEAD_STEPS, HEAD_RATE = 100, 1e-2


class TaskHead(nn.Module):
    """Logits from the tokens of a ViT: of the picture, or of every pixel."""

    def __init__(self, linear: nn.Linear, dense: bool, size: int) -> None:
        super().__init__()
        self.linear, self.dense, self.size = linear, dense, size

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.dense:
            return self.linear(tokens[:, 0])
        side = self.size // PATCH
        maps = self.linear(tokens[:, 1:]).transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(maps, (self.size, self.size), mode='bilinear')


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() - mean) / std


def learn(several: MultiTask, name: str, task: Task, options: argparse.Namespace) -> None:
    """Adds a task, and trains its adapter and head."""
    images, labels = task.train
    several.use(None)
    torch.manual_seed(options.seed)
    model = SmallModel(several.backbone, task.classes, task.dense)
    fit_small_head(
        model, task, iterations=HEAD_STEPS, batch=options.batch, rate=HEAD_RATE, seed=options.seed
    )
    chosen, generator = drawn_order(len(images), options.seed)
    batches = [(images[c], labels[c]) for c in chosen[:SCORED].split(SCORED_AT_A_TIME)]
    scores = estimate_scores(several.backbone, batches, sample_losses(model))
    weights = sum(p.numel() for p in several.backbone.parameters())
    plan = make_plan(scores, budget_params=int(weights * options.percent / 100))

    several.add(name, plan, TaskHead(model.head, task.dense, images.shape[-1]), seed=options.seed)
    several.use(name)
    groups = [
        {'params': [p for p in several.backbone.parameters() if p.requires_grad]},
        {'params': list(model.head.parameters())},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [options.rate, HEAD_RATE], total_steps=options.iterations, pct_start=0.1
    )
    order = batches_of(len(images), options.batch, options.iterations, generator)
    train_small(model, images, labels, order, optimizer, schedule)
    several.eval()


@torch.no_grad()
def score(several: MultiTask, name: str, task: Task) -> float:
    several.use(name)
    parts = [several(normalised(part)).argmax(1) for part in task.val[0].split(32)]
    return task.score(torch.cat(parts))


def read_tasks(options: argparse.Namespace) -> dict[str, Task]:
    if options.synthetic:
        return {
            'camvid': made_up(4, 0, dense=True),
            'dense': made_up(2, 1, dense=True),
            'caltech101': made_up(5, 2, dense=False),
        }
    return {
        'camvid': read_dense(options.camvid, options.size, options.void),
        'dense': read_dense(options.dense, options.size),
        'caltech101': read_vtab(options.caltech, options.size),
    }


def made_up(classes: int, seed: int, *, dense: bool) -> Task:
    """Pictures whose brightness tells the class."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(classes, (count, 2, 2) if dense else (count,), generator=generator)
        grey = labels.float() * (200 / classes)
        grey = grey.repeat_interleave(16, 1).repeat_interleave(16, 2) if dense else grey
        grey = (grey if dense else grey[:, None, None]).expand(count, 32, 32)
        noise = 40 * torch.rand(count, 3, 32, 32, generator=generator)
        if dense:
            labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
        return (grey[:, None] + noise).byte(), labels

    return Task(draw(40), draw(20), classes)


def tiny_vit(*_: object) -> nn.Module:
    """A ViT of random weights for pictures of 32 pixels."""
    import timm

    torch.manual_seed(0)
    sizes = dict(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2)
    model: nn.Module = timm.models.VisionTransformer(num_classes=0, global_pool='', **sizes)
    return model


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--synthetic', action='store_true', help='random pictures, a tiny ViT')
    parser.add_argument('--weights', help="a DeiT-Tiny in timm's names, safetensors")
    parser.add_argument('--camvid', type=Path, metavar='FOLDER')
    parser.add_argument('--void', type=int, default=None, help='label of CamVid to ignore')
    parser.add_argument('--dense', type=Path, metavar='FOLDER')
    parser.add_argument('--caltech', type=Path, metavar='FOLDER')
    parser.add_argument('--size', type=int, default=128, help='side of the pictures, pixels')
    parser.add_argument('--percent', type=float, default=0.5, help='of the backbone (0.5)')
    parser.add_argument('--iterations', type=int, default=200)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--rate', type=float, default=5e-3, help='of the backbone (5e-3)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--dtype', default=None, help='of the files: float16, bfloat16')
    parser.add_argument('--out', type=Path, default=Path('many_tasks'), metavar='FOLDER')
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if not options.synthetic:
        needed = ('weights', 'camvid', 'dense', 'caltech')
        lacking = [name for name in needed if getattr(options, name) is None]
        if lacking:
            parser.error(f'--{lacking[0]} is needed, or --synthetic')
    tasks = read_tasks(options)
    base: Callable[[], nn.Module] = partial(deit_tiny, options.weights, options.size)
    if options.synthetic:
        base = tiny_vit

    several = MultiTask(base().eval())
    options.out.mkdir(parents=True, exist_ok=True)
    files = {name: options.out / f'{name}.safetensors' for name in tasks}
    found = {}
    for name, task in tasks.items():
        learn(several, name, task, options)
        several.save(name, files[name], dtype=options.dtype)
        found[name] = score(several, name, task)
        print(f'{name}: {found[name]:.1f}', flush=True)

    served = MultiTask(base().eval())  # another process, say
    for name, task in tasks.items():
        linear = nn.Linear(several.backbone.embed_dim, task.classes)
        served.add(name, files[name], TaskHead(linear, task.dense, task.val[0].shape[-1]))
    served.eval()
    sizes = served.num_bytes()
    rows = []
    for name, task in tasks.items():
        again, stored = score(served, name, task), files[name].stat().st_size
        if options.dtype is None:
            assert again == found[name], 'a file brings back what was trained'
        metric = 'mIoU' if task.dense else 'top-1'
        rows.append([name, f'{metric} {again:.1f}', f'{stored:,}', f'{sizes[name]:,}'])
    print(aligned(['task', 'validation', 'bytes of its file', 'bytes in memory'], rows))
    print(f'base: {sizes[None]:,} bytes, once')

    images = normalised(torch.stack([task.val[0][i] for i in (0, 1) for task in tasks.values()]))
    names = [*tasks, *tasks]
    outputs = served(images, tasks=names)
    worst, switches = 0.0, []
    with torch.no_grad():
        for index, name in enumerate(names):
            start = time.perf_counter()
            served.use(name)
            switches.append(1e3 * (time.perf_counter() - start))
            alone = served(images[index : index + 1])[0]
            worst = max(worst, float((outputs[index] - alone).abs().max() / alone.abs().max()))
    print(
        f'a batch of {len(names)} from {len(tasks)} tasks: up to {worst:.1e} of the largest logit'
    )
    print(f'switching took {sorted(switches)[len(switches) // 2]:.1f} ms (median)')
    if worst > 1e-3:
        raise SystemExit('a mixed batch gives other outputs than its samples one by one')


if __name__ == '__main__':
    main()
