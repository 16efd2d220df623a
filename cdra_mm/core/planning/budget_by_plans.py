"""The selection threshold for a budget by making whole plans.

Slow: for sizes that no histogram tells. A grid of thresholds, evenly spaced in the logarithm
of the number of selected entries, then bisection between the largest plan of the grid that
fits and its neighbour with more entries. Where the size of a plan grows with every entry, the
result is the largest plan within the budget; where it does not, it is the largest one seen.
The budget is never exceeded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cdra_mm.errors import PlanError

from .budget import MORE_RANK
from .selection import FINITE_BUCKETS, Threshold, coarse_histogram

__all__ = ['threshold_by_plans']

GRID = 48  # plans; about as many as the bisection may take afterwards


def threshold_by_plans(
    scores: Mapping[str, Tensor],
    budget: int,
    size_at: Callable[[Threshold], tuple[int, int]],
) -> Threshold:
    """The threshold of the largest plan within a budget that was seen.

    Args:
        scores: Scores by target name.
        budget: Trainable backbone parameters.
        size_at: Trainable parameters of the plan at a threshold, and how many matrices it adapts.

    Returns:
        The threshold; entries with equal scores are selected together.

    Raises:
        PlanError: If no plan with an adapter was seen to fit.
    """
    if not any(score.numel() for score in scores.values()):
        raise PlanError('there is no score: expected at least one competing entry')
    grid = _grid(scores)
    best: tuple[int, int] | None = None  # (parameters, -bits): of equal sizes the most entries
    smallest: int | None = None

    def fits(bits: int) -> bool:
        """Tries the plan of all entries at or above a bit pattern."""
        nonlocal best, smallest
        params, adapted = size_at(Threshold(bits - 1, 0))
        if not adapted:
            return params <= budget  # on the way to a plan with an adapter
        smallest = params if smallest is None else min(smallest, params)
        if params > budget:
            return False
        best = max(best or (-1, 0), (params, -bits))
        return True

    fitting = [bits for bits in grid if fits(bits)]
    # The largest plan, and the one of the most entries: the same where sizes grow, unless the
    # latter adapts nothing and only vectors have grown.
    starts = {min(fitting, default=FINITE_BUCKETS << 16)} | ({-best[1]} if best else set())
    for high in starts:
        low = max((bits for bits in grid if bits < high), default=0)
        while high - low > 1:
            middle = (high + low) // 2
            if fits(middle):
                high = middle
            else:
                low = middle
    if best is None:
        raise PlanError(
            f'budget_params={budget} is too small for any adapter: '
            + (
                f'no threshold that was tried gives a rank of 1: {MORE_RANK}'
                if smallest is None
                else f'the smallest plan with an adapter that was seen trains {smallest} parameters'
            )
        )
    return Threshold(-best[1] - 1, 0)


def _grid(scores: Mapping[str, Tensor]) -> list[int]:
    """Bit patterns to try, highest first; the last one selects everything."""
    counts = sum(coarse_histogram(name, score)[:FINITE_BUCKETS] for name, score in scores.items())
    assert isinstance(counts, Tensor)
    above = counts.flip(0).cumsum(0)
    wanted = torch.logspace(0, 1, GRID, base=float(above[-1]), dtype=torch.float64).round().long()
    positions = torch.searchsorted(above, wanted.clamp(1, int(above[-1]))).tolist()
    return [(FINITE_BUCKETS - 1 - position) << 16 for position in sorted(set(positions))]
