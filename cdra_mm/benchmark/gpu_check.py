"""What `tools/gpu_check.sh` measures on a GPU, in a fixed time, the most important first.

Parts that the time does not suffice for are left out, and said so. Needs torch and timm; peft is
compared with where it is installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from .case import Case, build_vit
from .planning_time import compare_planning
from .report import Results, machine_line
from .scoring_time import compare_scores
from .step import compare_steps

__all__ = ['main', 'parts', 'table']

# Of the frozen limit's time, unless another is named.
GOALS = {
    ('eager', 'ours paper'): 1.3,
    ('eager', 'ours spt'): 1.3,
    ('graph', 'ours paper'): 1.10,
    ('graph', 'ours spt'): 1.05,
    ('compile', 'ours paper'): 1.10,
    ('compile', 'ours spt'): 1.05,
}


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        name: For the table.
        seconds: What it takes on an H100, roughly; it is left out where less time is left.
        run: Makes the record.
    """

    name: str
    seconds: float
    run: Callable[[], dict[str, Any]]


def parts(case: Case) -> Iterator[Part]:
    """The measurements, the most important first.

    Args:
        case: Model, types and device; sizes and batches are set here.
    """
    peers = ['peft']
    for mode, batch, size, seconds in (
        ('eager', 32, 224, 25),
        ('graph', 32, 224, 25),
        ('eager', 8, 224, 15),
        ('graph', 8, 224, 15),
        ('graph', 64, 224, 30),
        ('eager', 64, 224, 30),
        ('graph', 8, 512, 25),
    ):
        one = replace(case, mode=mode, batch=batch, image_size=size)
        yield Part(f'step, {mode}, batch {batch}, {size} px', seconds, _steps(one, peers))
    for batch in (32, 64):
        one = replace(case, batch=batch)
        run = partial(compare_scores, one, peers=[])
        yield Part(f'scores, batch {batch}', 15, run)
    planning = partial(compare_planning, '86M', device=case.device, repeats=3)
    yield Part('planning, 86M scores', 20, planning)
    one = replace(case, mode='compile', batch=32)
    yield Part('step, compile, batch 32, 224 px', 150, _steps(one, []))


def _steps(case: Case, peers: list[str]) -> Callable[[], dict[str, Any]]:
    return partial(compare_steps, case, peers=peers, of_size=False)


def main(arguments: list[str] | None = None, *, case: Case | None = None) -> int:
    """The command.

    Returns:
        0 where every part that ran has a result.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--json', metavar='FILE')
    parser.add_argument('--seconds', type=float, default=400, help='time for all parts (400)')
    parser.add_argument('--model', default='ViT-B')
    parser.add_argument('--repeats', type=int, default=10)
    parser.add_argument('--tests', type=int, default=0, help='exit status of the kernel tests')
    given = parser.parse_args(arguments)
    case = case or Case(given.model, dtype='bf16', device='cuda', build=build_vit)
    case = replace(case, repeats=given.repeats, warmup=3)
    if case.device == 'cuda' and not torch.cuda.is_available():
        parser.error('PyTorch sees no GPU here')
    results = Results(given.json, vars(given), case.device)
    print(machine_line(results.content['machine']), flush=True)
    end = time.monotonic() + given.seconds
    rows: list[tuple[str, str]] = [('kernel tests', 'FAILED' if given.tests else 'passed')]
    failed = bool(given.tests)
    for part in parts(case):
        left = end - time.monotonic()
        if left < part.seconds:
            rows.append((part.name, f'left out: {left:.0f} s left of {given.seconds:.0f}'))
            continue
        begin = time.monotonic()
        try:
            record = part.run()
        except Exception as error:  # the other parts are worth their time all the same
            reason = f'{type(error).__name__}: {error}'.partition('\n')[0]
            record = {'candidates': {}, 'skipped': {'everything': reason}}
            failed = True
        results.add({'part': part.name, 'took_seconds': time.monotonic() - begin, **record})
        shown = list(table(part.name, record))
        print(*(f'{name}: {text}' for name, text in shown), sep='\n', flush=True)
        rows += shown
    results.finish()
    width = max(len(name) for name, _ in rows)
    print('', *(f'{name:<{width}}  {text}' for name, text in rows), sep='\n')
    return int(failed)


def table(name: str, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A line for each candidate of a record: its ratio, and whether that is the goal's."""
    for candidate, entry in record['candidates'].items():
        milliseconds = f'{1000 * entry["seconds"]:.2f} ms'
        ratio = entry.get('ratio_vs_frozen_limit') or entry.get('ratio_vs_backward')
        words = [milliseconds] if ratio is None else [milliseconds, f'x {ratio:.3f}']
        goal = GOALS.get((record.get('mode', ''), candidate))
        if record.get('benchmark') == 'scores' and candidate == 'ours':
            goal = 1.3
        if goal is not None and ratio is not None:
            words.append(f'(goal {goal:.2f}: {"met" if ratio <= goal else "MISSED"})')
        if entry.get('peak_bytes_above_rest'):
            words.append(f'peak {entry["peak_bytes_above_rest"] / 2**20:,.0f} MiB')
        yield f'{name}: {candidate}', ', '.join(words)
    for candidate, reason in record['skipped'].items():
        yield f'{name}: {candidate}', f'skipped: {reason}'


if __name__ == '__main__':
    raise SystemExit(main())
