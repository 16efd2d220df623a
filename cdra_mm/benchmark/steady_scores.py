"""What one more batch costs while scores are estimated, beside a backward: setup left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from cdra_mm.core import estimate_scores

from .candidates import Candidates
from .case import Case
from .memory import peak_above_rest
from .peers import quiet
from .scoring_time import REFERENCE, backward_of
from .timing import add_ratio

__all__ = ['ONE_MORE', 'compare_steady_scores']

ONE_MORE = 'ours, each batch more'


def compare_steady_scores(case: Case, batches: int = 5, *, memory: bool = True) -> dict[str, Any]:
    """Times of scoring one batch and several, and of each batch after the first.

    Args:
        case: The setting.
        batches: How many batches the longer run has, at least 2.
        memory: Whether to measure memory, on a GPU.

    Returns:
        A record of plain values. The entry `ONE_MORE` is the difference of the two runs of a
        round over the batches that one has more; the two runs are whole, setup included.
    """
    compared = Candidates(case, 'steady scores', {'backward': REFERENCE}, batches=batches)
    whole = {count: f'ours, {count} batch{"es" if count > 1 else ""}' for count in (1, batches)}
    with quiet():
        model, batch = case.make_model(), case.make_batch()
        runs: dict[str, Callable[[], Any]] = {REFERENCE: backward_of(case, model, batch)}
        for count, name in whole.items():
            runs[name] = partial(estimate_scores, model, [batch] * count, case.losses)
        compared.time(runs)
        if memory and case.device == 'cuda':
            for name in (REFERENCE, whole[1]):
                with compared.fitting(name):
                    peak = peak_above_rest(runs[name], case.device)
                    compared.found[name]['peak_bytes_above_rest'] = peak
    found = compared.found
    if all(name in found for name in whole.values()):
        one, many = (found[name]['seconds_all'] for name in whole.values())
        more = [(b - a) / (batches - 1) for a, b in zip(one, many, strict=True)]
        found[ONE_MORE] = {'seconds': median(more), 'seconds_all': more}
        if REFERENCE in found:
            add_ratio(found[ONE_MORE], 'backward', more, found[REFERENCE]['seconds_all'])
    return compared.record
