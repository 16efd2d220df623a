"""What `tools/gpu_check.sh` measures on a GPU, in a fixed time, the most important first.

Parts that the time does not suffice for are left out, and said so; one that takes far longer than
it should is cut off. Needs torch and timm; peft is compared with where it is installed.
"""

from __future__ import annotations

import argparse
import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from cdra_mm.core.adapters.native_linear import NATIVE

from .candidates import error_line
from .case import Case, build_vit
from .gpu_goals import SCORED, STEPS, verdicts
from .planning_time import compare_planning
from .report import Results, machine_line
from .steady_scores import compare_steady_scores
from .step import compare_steps

__all__ = ['main', 'parts', 'table']

# What a part takes on an H100, roughly. By mode: a batch of 64 or 512 px takes some more.
SECONDS = {'eager': 20, 'graph': 20, 'compile': 120}
OVER = 2  # times its seconds that a part may take, where so much is left
FOR_MAKING = 0.6  # of a part's time: a candidate whose turn comes later is left out
STATUS = {0: 'passed', 124: 'CUT OFF at their share of the time', 137: 'CUT OFF, killed'}


class OutOfTime(BaseException):
    """A part took too long; no part may take it for an error of its own."""


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        name: For the table.
        seconds: What it takes on an H100, roughly; it is left out where less time is left.
        run: Makes the record; given the time (`time.monotonic`) by which all should be made that
            it measures.
    """

    name: str
    seconds: float
    run: Callable[[float], dict[str, Any]]


def parts(case: Case) -> Iterator[Part]:
    """The measurements, the most important first; compiling, which takes longest, is last.

    Args:
        case: Model, types and device; sizes and batches are set here.
    """
    for mode, batch, size in STEPS:
        if mode == 'compile':
            yield from _other_parts(case)
        one = replace(case, mode=mode, batch=batch, image_size=size)
        large = 10 if batch > 32 or size > 224 else 0
        yield Part(f'step, {mode}, batch {batch}, {size} px', SECONDS[mode] + large, _steps(one))


def _other_parts(case: Case) -> Iterator[Part]:
    for batch in SCORED:
        one = replace(case, batch=batch)
        yield Part(f'scores, batch {batch}', 30, _whole(partial(compare_steady_scores, one)))
    planning = partial(compare_planning, '86M', device=case.device, repeats=3)
    yield Part('planning, 86M scores', 20, _whole(planning))


def _whole(measure: Callable[[], dict[str, Any]]) -> Callable[[float], dict[str, Any]]:
    """A part that can leave nothing out."""
    return lambda until: measure()


def _steps(case: Case, peers: tuple[str, ...] = ('peft',)) -> Callable[[float], dict[str, Any]]:
    def run(until: float) -> dict[str, Any]:
        return compare_steps(case, peers=peers, of_size=False, keep_going=True, until=until)

    return run


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` inside when the time is over, in the main thread."""

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure_part(part: Part, seconds: float) -> tuple[dict[str, Any], bool]:
    """The record of a part that may take so long, and whether all that ran has a result."""
    begin = time.monotonic()
    record: dict[str, Any] = {'candidates': {}}
    try:
        with at_most(seconds):
            record = part.run(begin + FOR_MAKING * seconds)
        done = not record.get('failed')
    except OutOfTime:
        record['skipped'], done = {'everything': f'cut off after {seconds:.0f} s'}, False
    except Exception as error:  # the other parts are worth their time all the same
        record['skipped'], done = {'everything': error_line(error)}, False
    gc.collect()  # models hold each other: their memory is the next part's
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {'part': part.name, 'took_seconds': time.monotonic() - begin, **record}, done


def main(arguments: list[str] | None = None, *, case: Case | None = None) -> int:
    """The command.

    Returns:
        0 where the tests passed and every part that ran has a result for each candidate.
    """
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--json', metavar='FILE')
    parser.add_argument('--seconds', type=float, default=380, help='time for all parts (380)')
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
    rows: list[tuple[str, str]] = [('kernel tests', STATUS.get(given.tests, 'FAILED'))]
    without = NATIVE.build_now()
    product = f'in Python: {without}' if without else 'in C++'
    rows.append(('adapted product', product))
    results.content['adapted product'] = product
    failed = bool(given.tests)
    for part in parts(case):
        left = begin + given.seconds - time.monotonic()
        if left < part.seconds:
            rows.append((part.name, f'left out: {max(left, 0):.0f} s left of {given.seconds:.0f}'))
            continue
        record, done = measure_part(part, min(left, OVER * part.seconds))
        failed |= not done
        results.add(record)
        shown = list(table(part.name, record))
        print(*(f'{name}: {text}' for name, text in shown), sep='\n', flush=True)
        rows += shown
    judged = list(verdicts(results.content['results']))
    results.content['goals'] = dict(judged)
    results.finish()
    rows += judged
    width = max(len(name) for name, _ in rows)
    print('', *(f'{name:<{width}}  {text}' for name, text in rows), sep='\n')
    return int(failed)


RATIOS = {
    'ratio_vs_frozen_limit': 'x {:.3f}',
    'ratio_vs_backward': 'x {:.3f}',
    'ratio_vs_peft_lora': 'x {:.3f} of LoRA',
    'ratio_vs_full': 'x {:.3f} of full',
}
BYTES = {'peak_bytes': 'peak {:,.0f} MiB', 'peak_bytes_above_rest': 'above rest {:,.0f} MiB'}


def table(name: str, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A line for each candidate of a record: its time, ratios and bytes, or why it has none."""
    for candidate, entry in record['candidates'].items():
        words = [f'{1000 * entry["seconds"]:.2f} ms'] if 'seconds' in entry else []
        words += [text.format(entry[key]) for key, text in RATIOS.items() if entry.get(key)]
        words += [text.format(entry[key] / 2**20) for key, text in BYTES.items() if entry.get(key)]
        yield f'{name}: {candidate}', ', '.join(words)
    for candidate, reason in record['skipped'].items():
        yield f'{name}: {candidate}', f'skipped: {reason}'


if __name__ == '__main__':
    raise SystemExit(main())
