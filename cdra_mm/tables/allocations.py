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
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from torch import nn

from cdra_mm.benchmark.small_tasks import Task, read_dense, read_vtab
from cdra_mm.benchmark.small_training import deit_tiny
from cdra_mm.columns import aligned
from cdra_mm.errors import ConfigError
from cdra_mm.spelling import unknown

from .allocation_setting import VARIANTS, Setting
from .comparison import Paired, paired

__all__ = ['compare', 'main']


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
        difference = paired(_pairs(best, variant), _pairs(best, against))
        rows.append(
            [
                variant,
                *(f'{fmean(own[t].values()):.1f}' if t in own else '-' for t in tasks),
                _text(difference),
                ', '.join(edges.get(variant, [])) or '-',
            ]
        )
    head = ['', *tasks, f'over {against} (standard error), pairs', 'best rate at an edge']
    return aligned(head, rows)


def _pairs(
    best: Mapping[tuple[str, str], Mapping[int, float]], variant: str
) -> dict[tuple[str, int], float]:
    """A variant's figures at its best rates, by task and seed."""
    return {
        (task, seed): value
        for (name, task), found in best.items()
        if name == variant
        for seed, value in found.items()
    }


def _text(difference: Paired | None) -> str:
    if difference is None:
        return '-'
    error = float('nan') if difference.error is None else difference.error
    return f'{difference.mean:+.2f} ({error:.2f}), {difference.pairs}'


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
