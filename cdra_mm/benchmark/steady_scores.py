"""What one more batch costs while scores are estimated, beside a backward: setup left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from cdra_mm.core import estimate_scores
from cdra_mm.core.scoring.mean_gradients import mean_gradients

from .candidates import Candidates
from .case import Case
from .memory import peak_above_rest
from .peers import quiet
from .scoring_time import REFERENCE, backward_of
from .timing import add_ratio

__all__ = ['MEAN_MORE', 'ONE_MORE', 'compare_steady_scores']

# The scores of Eq. 3, and what CDRA by descent and by energy takes in their place.
OURS, MEAN = 'ours', 'mean gradients'
MORE = '{}, each batch more'
ONE_MORE, MEAN_MORE = (MORE.format(what) for what in (OURS, MEAN))


def compare_steady_scores(case: Case, batches: int = 5, *, memory: bool = True) -> dict[str, Any]:
    """Times of scoring one batch and several, and of each batch after the first.

    Args:
        case: The setting.
        batches: How many batches the longer run has, at least 2.
        memory: Whether to measure memory, on a GPU.

    Returns:
        A record of plain values. The entries `ONE_MORE` and `MEAN_MORE` are the difference of the
        two runs of a round over the batches that one has more; the runs are whole, setup included.
    """
    compared = Candidates(case, 'steady scores', {'backward': REFERENCE}, batches=batches)
    few, many = '1 batch', f'{batches} batches'
    scorings: dict[str, Callable[..., Any]] = {OURS: estimate_scores, MEAN: mean_gradients}
    with quiet():
        model, batch = case.make_model(), case.make_batch()
        runs: dict[str, Callable[[], Any]] = {REFERENCE: backward_of(case, model, batch)}
        for what, score in scorings.items():
            for count, length in ((1, few), (batches, many)):
                given = [batch] * count
                runs[f'{what}, {length}'] = partial(score, model, given, case.losses)
        compared.time(runs)
        if memory and case.device == 'cuda':
            for name in (REFERENCE, f'{OURS}, {few}'):
                with compared.fitting(name):
                    peak = peak_above_rest(runs[name], case.device)
                    compared.found[name]['peak_bytes_above_rest'] = peak
    found = compared.found
    for what in scorings:
        names = [f'{what}, {length}' for length in (few, many)]
        if all(name in found for name in names):
            one, all_of_them = (found[name]['seconds_all'] for name in names)
            more = [(b - a) / (batches - 1) for a, b in zip(one, all_of_them, strict=True)]
            entry = {'seconds': median(more), 'seconds_all': more}
            found[MORE.format(what)] = entry
            if REFERENCE in found:
                add_ratio(entry, 'backward', more, found[REFERENCE]['seconds_all'])
    return compared.record
