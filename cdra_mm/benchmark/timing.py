"""Times of several candidates that can be compared with each other.

A shared or warming machine drifts, so the candidates run in turn: every round runs
each of them once, in a new random order, and ratios are taken within a round.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch

__all__ = ['Measurement', 'Ratio', 'add_ratio', 'is_out_of_memory', 'measure', 'paired_ratio']


@dataclass
class Measurement:
    """What `measure` found.

    Attributes:
        seconds: Times of each candidate by round, warm-up left out.
        failed: Candidates that were taken out, and the error.
    """

    seconds: dict[str, list[float]]
    failed: dict[str, Exception] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """A candidate's time over the reference's: median and quartiles over the rounds."""

    median: float
    low: float
    high: float


def measure(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    device: str,
    repeats: int,
    warmup: int,
    seed: int = 0,
    clock: Callable[[Callable[[], Any], str], float] | None = None,
    keep_going: bool = False,
) -> Measurement:
    """Runs every candidate once a round, in an order shuffled each round.

    A candidate that runs out of memory is taken out; the others go on.

    Args:
        candidates: What to run, by name; results are dropped outside the timed part.
        device: ``'cpu'`` or ``'cuda'``.
        repeats: Rounds that count.
        warmup: Rounds before them.
        seed: Seed of the orders.
        clock: Called as ``clock(candidate, device)``, returns seconds. Default:
            `seconds_of`.
        keep_going: Whether a candidate with any other error is taken out too.
    """
    clock = clock or seconds_of
    rng = random.Random(seed)
    result = Measurement({name: [] for name in candidates})
    gc.collect()
    gc.freeze()  # what lives now need not be looked through again in every round
    try:
        _rounds(candidates, result, device, warmup, repeats, rng, clock, keep_going)
    finally:
        gc.unfreeze()
    return result


def _rounds(
    candidates: Mapping[str, Callable[[], Any]],
    result: Measurement,
    device: str,
    warmup: int,
    repeats: int,
    rng: random.Random,
    clock: Callable[[Callable[[], Any], str], float],
    keep_going: bool,
) -> None:
    for number in range(warmup + repeats):
        order = list(result.seconds)
        rng.shuffle(order)
        gc.collect()  # so that no candidate pays for another one's garbage
        for name in order:
            try:
                seconds = clock(candidates[name], device)
            except Exception as error:
                if not (keep_going or is_out_of_memory(error)):
                    raise
                result.failed[name] = error.with_traceback(None)  # which holds what the step made
                del result.seconds[name]
                gc.collect()
                if device == 'cuda':
                    torch.cuda.empty_cache()
                continue
            if number >= warmup:
                result.seconds[name].append(seconds)


def seconds_of(candidate: Callable[[], Any], device: str) -> float:
    """Seconds of one run: CUDA events on a GPU, the clock on a CPU."""
    if device != 'cuda':
        start = time.perf_counter()
        held = candidate()
        seconds = time.perf_counter() - start
        del held
        return seconds
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    held = candidate()
    end.record()
    end.synchronize()
    del held
    return float(begin.elapsed_time(end)) / 1000


def paired_ratio(seconds: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Ratios of the same rounds, their median and quartiles.

    Example:
        >>> paired_ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
        Ratio(median=2.0, low=1.5, high=2.5)
    """
    ratios = [a / b for a, b in zip(seconds, reference, strict=True)]
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, _, high = quantiles(ratios, n=4, method='inclusive')
    return Ratio(median(ratios), low, high)


def add_ratio(
    entry: dict[str, Any], key: str, seconds: Sequence[float], reference: Sequence[float]
) -> None:
    """Puts ``ratio_vs_<key>`` into a record: its median, quartiles, and that of the fastest.

    The ratio of the fastest rounds is what remains where other processes disturb most rounds.
    """
    ratio = paired_ratio(seconds, reference)
    entry[f'ratio_vs_{key}'] = ratio.median
    entry[f'ratio_vs_{key}_quartiles'] = [ratio.low, ratio.high]
    entry[f'ratio_vs_{key}_of_fastest'] = min(seconds) / min(reference)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        'out of memory' in text or "can't allocate memory" in text or 'not enough memory' in text
    )
