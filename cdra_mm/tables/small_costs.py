"""What the rows of a study in memory cost: parameters, files, memory and time of a step.

python -m cdra_mm.tables.small_costs configs/tables/compare_peft.py --task caltech101

Steps of all rows take turns, so that what else the machine does meets all of them alike; shown is
the median over the rounds of the ratio to the first row's step of the same round. Memory is what
a step makes and holds at its peak, activations and gradients, and the optimizer's two moments.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from cdra_mm.benchmark.small_training import SmallModel, deit_tiny, small_loss
from cdra_mm.columns import aligned
from cdra_mm.errors import ConfigError
from cdra_mm.sizing.live_bytes import LiveBytes
from cdra_mm.storage import write_text

from .grid import pick
from .small_file import SmallStudy, read_small_study
from .small_runs import Setting

__all__ = ['Cost', 'costs_of', 'main']

MOMENTS = 2  # of AdamW, for each trained number


@dataclass(frozen=True)
class Cost:
    """What a row costs.

    Attributes:
        params: Trained parameters of the backbone.
        file_bytes: What it saves of them, with what says where they belong.
        peak_bytes: Activations, gradients and moments at the peak of a step.
        ratio: Time of a step over that of the first row.
    """

    params: int
    file_bytes: int
    peak_bytes: int
    ratio: float


def costs_of(
    study: SmallStudy,
    task: str,
    setting: Setting,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Cost]:
    """The costs of all rows on one task.

    Args:
        study: The study.
        task: One of its tasks.
        setting: That task with a seed.
        rounds: Steps of each row that are timed.
        clock: Seconds.
    """
    models: dict[str, SmallModel] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for row in study.grid.rows:
        attached = setting.attach(study.recipe(row.name, task))
        model = copy.deepcopy(setting.model())
        model.backbone = attached.put(model.backbone)
        models[row.name] = model.train()
        sizes[row.name] = attached.params, attached.file_bytes(model.backbone)
    images, labels = (tensor[: setting.batch] for tensor in setting.task.train)

    def step(model: nn.Module) -> None:
        model.zero_grad()
        small_loss(model(images), labels).backward()

    peaks = {}
    for name, model in models.items():
        step(model)  # the first makes what later ones find
        with LiveBytes() as live:
            step(model)
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        peaks[name] = live.peak + MOMENTS * trained
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            begin = clock()
            step(model)
            seconds[name].append(clock() - begin)
    first = seconds[study.grid.rows[0].name]
    ratios = {
        name: median(ours / theirs for ours, theirs in zip(found, first, strict=True))
        for name, found in seconds.items()
    }
    return {name: Cost(*sizes[name], peaks[name], ratios[name]) for name in models}


def text(study: SmallStudy, costs: Mapping[str, Cost]) -> str:
    """A table of costs."""
    titles = {row.name: row.title for row in study.grid.rows}
    first = study.grid.rows[0].title
    rows = [
        [
            titles[name],
            f'{cost.params:,}',
            f'{cost.file_bytes / 1e3:.0f}',
            f'{cost.peak_bytes / 2**20:.0f}',
            f'{cost.ratio:.2f}',
        ]
        for name, cost in costs.items()
    ]
    return aligned(['', 'parameters', 'files, kB', 'step, MiB', f'time over {first}'], rows)


def main(
    arguments: Sequence[str] | None = None,
    *,
    backbone: Callable[[str, int], nn.Module] = deit_tiny,
) -> None:
    """The command; see the module.

    Raises:
        ConfigError: If a name is unknown, or there is no round.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('study', type=Path, help='file of the study')
    parser.add_argument('--task', required=True, help='whose images are taken')
    parser.add_argument('--methods', nargs='+', metavar='NAME', help='rows (all)')
    parser.add_argument('--rounds', type=int, default=12, help='timed steps of each row (12)')
    parser.add_argument('--json', type=Path, help='where the costs are written')
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        raise ConfigError(f'--rounds {given.rounds}: expected at least 1')
    study = read_small_study(given.study).narrow(given.methods)
    pick('task', study.grid.tasks, [given.task])
    torch.set_num_threads(1)
    setting = Setting(
        study.data(given.task),
        partial(backbone, study.weights),
        study.grid.seeds[0],
        iterations=1,
        batch=study.tasks[given.task]['batch'],
    )
    costs = costs_of(study, given.task, setting, given.rounds)
    print(text(study, costs))
    if given.json:
        found = {name: asdict(cost) for name, cost in costs.items()}
        write_text(given.json, json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
