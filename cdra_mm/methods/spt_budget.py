"""The largest plan of SPT within a budget, over every selection threshold.

The size of a plan is a sum over the targets of what each trains, which depends on
nothing but the number of its selected entries, and grows with it. So it grows with
every entry that a lower threshold lets in, and the best threshold is where it passes
the budget. Two passes over the scores find it, by the upper and by the lower 16 bits
(as in `core.selection`): exact, without sorting or copying anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cdra_mm.core.planning.selection import (
    BUCKETS,
    FINITE_BUCKETS,
    Threshold,
    coarse_histogram,
    fine_histogram,
)
from cdra_mm.errors import PlanError

__all__ = ['threshold_for_budget']

SizeOf = Callable[[tuple[int, ...], Tensor], Tensor]


def threshold_for_budget(
    scores: Mapping[str, Tensor], budget: int, size_of: SizeOf, *, reserved: int = 0
) -> Threshold:
    """The threshold of the largest plan within a budget.

    Args:
        scores: fp32 scores by target name.
        budget: Trainable backbone parameters.
        size_of: Parameters of a target by its shape and the numbers of its selected
            entries, int64; must not fall with these.
        reserved: Parameters of the budget that are trained besides.

    Returns:
        The threshold; entries with equal scores are selected together.

    Raises:
        PlanError: If not even the highest scores fit, naming the smallest plan.
    """
    if not any(score.numel() for score in scores.values()):
        raise PlanError('there is no score: expected at least one competing entry')
    # Highest bucket first: parameters, and selected entries, with all buckets down to each.
    sizes = torch.zeros(2, FINITE_BUCKETS, dtype=torch.int64)
    for name, score in scores.items():
        number = coarse_histogram(name, score)[:FINITE_BUCKETS].flip(0).cumsum(0)
        sizes += torch.stack([size_of(tuple(score.shape), number), number])
    room = budget - reserved
    crossed = int(torch.searchsorted(sizes[0], room, right=True))
    if crossed == FINITE_BUCKETS:
        return Threshold(-1, 0)  # everything fits
    crossed = max(crossed, int((sizes[1] > 0).int().argmax()))  # empty buckets hide no plan
    upper = FINITE_BUCKETS - 1 - crossed
    fine = torch.zeros(2, BUCKETS, dtype=torch.int64)
    for score in scores.values():
        above, counts = fine_histogram(score, upper)
        number = above + counts.flip(0).cumsum(0)
        fine += torch.stack([size_of(tuple(score.shape), number), number])
    fitting = int(torch.searchsorted(fine[0], room, right=True))
    selected = fine[1, fitting - 1] if fitting else sizes[1, crossed - 1] if crossed else 0
    if not int(selected):
        smallest = fine[0, int((fine[1] > 0).int().argmax())]
        raise PlanError(
            f'budget_params={budget} is too small for the most sensitive entry: the smallest plan '
            f'trains {int(smallest) + reserved} parameters'
            + (f', {reserved} of them beside the selected ones' if reserved else '')
        )
    # The lowest pattern that fits is BUCKETS - fitting; above its predecessor is at least it.
    return Threshold((upper << 16) + BUCKETS - fitting - 1, 0)
