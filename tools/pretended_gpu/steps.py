"""Training steps on the pretended GPU: the host's time, launches, waits; beside LoRA and full.

    python -m tools.pretended_gpu --values -m tools.pretended_gpu.steps [--model ViT-B] [options]

An eager step on a GPU takes as long as the host needs, where that is longer than the arithmetic.
Here a launch itself takes next to nothing; --launch adds what a driver takes for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from unittest import mock

import torch
from torch import nn

from cdra_mm.benchmark.case import Case, build_vit
from cdra_mm.benchmark.compared_models import REFERENCE
from cdra_mm.benchmark.peers import quiet
from cdra_mm.benchmark.step import Step, step_builders
from cdra_mm.benchmark.timing import measure, paired_ratio
from cdra_mm.columns import aligned
from cdra_mm.core.adapters.kernel_choice import kernels_run

from . import counts, without_values

WARMUP = 5  # the first ones make what stays


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', default='ViT-B')
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--rounds', type=int, default=31)
    parser.add_argument('--launch', type=float, default=0.0, help='microseconds (0)')
    parser.add_argument('--mode', help='of torch.compile; eager without')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='of the candidates')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    case = Case(args.model, dtype='bf16', device='cuda', batch=args.batch, build=build_vit)
    skipped: dict[str, str] = {}
    with quiet(), mock.patch('cdra_mm.core.adapters.kernel_check.check_kernels', lambda _: None):
        kernels_run(torch.device('cuda', 0))  # believed: nothing is computed, no check would pass
        builders = step_builders(case, ('paper', 'spt'), ('peft',), skipped, False)
        models = {
            name: build(case.make_model())
            for name, build in builders.items()
            if not args.only or name in (REFERENCE, *args.only)
        }
        batch = case.make_batch()
        with without_values():
            steps = {name: Step(case, model, batch) for name, model in models.items()}
            for step in steps.values() if args.mode else ():
                # Torch compiles hooks of what it is given apart.
                step.called = torch.compile(nn.Sequential(step.model), mode=args.mode)
            show(steps, args.rounds, args.launch)


def show(steps: dict[str, Step], rounds: int, launch: float) -> None:
    """Counts and times of all candidates."""
    found = {name: _counted(step) for name, step in steps.items()}
    # The device has nothing to do: the host's clock, not the events of a GPU.
    timed = measure(steps, device='cpu', repeats=rounds, warmup=0).seconds
    seconds = {n: [one + launch * 1e-6 * found[n][0] for one in own] for n, own in timed.items()}
    rows: list[list[str]] = []
    for name, own in seconds.items():
        ratio = paired_ratio(own, seconds[REFERENCE])
        over = f'{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})'
        rows.append([name, f'{1e3 * median(own):.1f}', over, *map(str, found[name])])
    head = ['', 'ms', 'x frozen limit (quartiles)', 'launches', 'graphs', 'waits']
    print(aligned(head, rows))


def _counted(step: Callable[[], None]) -> tuple[int, int, int]:
    """Launches, graphs and waits of one step."""
    for _ in range(WARMUP):
        step()
    begin = counts()
    step()
    found = counts() - begin
    return found.launches, found.graph_launches, found.waits


if __name__ == '__main__':
    main()
