"""The selection threshold whose plan just fits a parameter budget (design D4).

For a threshold t everything that the size of the plan depends on is known at
almost no cost:

    n(t)   = entries >= t                 from a histogram of each target
    |R(t)| = rows whose maximum >= t      from the sorted row maxima
    |C(t)| = columns whose maximum >= t   from the sorted column maxima

so all ranks come from a handful of vector operations, for thousands of
thresholds at once. First the edges of the buckets of the scores' upper 16 bits
(less than 1 % apart) are tried. With Eq. 7 or a fixed rank the size grows with
every entry; with the count rule it can fall, because n / (|R|+|C|) can. Bounds
on the size inside each bucket tell which buckets can still hide a better plan;
those are searched by the lower 16 bits, which is exact.

The size of a plan is a sum over the targets. So each pass takes the targets one
by one, adds what each contributes at every threshold, and forgets its
histogram; between passes only the row and column maxima are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdra_mm.errors import PlanError
from cdra_mm.progress import counted, phase

from .selection import BUCKETS, FINITE_BUCKETS, Threshold, coarse_histogram, fine_histogram
from .sizes import Rules, TargetSizes, shifted

__all__ = ['threshold_for_budget']

# Entries read while looking into buckets: some passes over a large model, hundreds over a small
# one. Beyond it the best plan found so far stands; the edges are less than 1 % apart.
SEARCH_ENTRIES = 1 << 29
LEAST_PASSES = 4


@dataclass(frozen=True)
class _Sweep:
    """Plans by threshold, highest threshold first. All int64 ``[thresholds]``."""

    thresholds: Tensor  # bit patterns: entries at or above are selected
    counts: Tensor  # selected entries
    params: Tensor  # trainable parameters
    adapters: Tensor  # matrices with a rank of at least 1


class _Search:
    """Plans of all thresholds of some scores.

    Attributes:
        sweep: The plans at the lower edges of the occupied buckets.
        least: Bounds of the parameters inside each of these buckets.
        most: Likewise.
    """

    def __init__(self, scores: Mapping[str, Tensor], rules: Rules) -> None:
        self.scores = scores
        self.targets: dict[str, TargetSizes] = {}
        maxima = _maxima_of(scores)
        edges = torch.arange(FINITE_BUCKETS - 1, -1, -1) << 16
        # Rows: n, parameters, adapters, least, most.
        totals = torch.zeros(5, len(edges), dtype=torch.int64)
        for name, score in counted(scores.items(), 'planning, every budget', unit='weights'):
            counts = coarse_histogram(name, score)
            target = self.targets[name] = TargetSizes(score, next(maxima), rules)
            n = counts[:FINITE_BUCKETS].flip(0).cumsum(0)
            for row, values in zip(
                totals, (n, *target.size(edges, n), *target.bounds(edges, n)), strict=True
            ):
                row += values
        # An empty bucket repeats the plan before it; then its bounds are of no use either.
        occupied = totals[0] > shifted(totals[0])
        self.sweep = _Sweep(edges[occupied], *totals[:3, occupied])
        self.least, self.most = totals[3:, occupied]
        size = sum(score.numel() for score in scores.values())
        self.passes = max(LEAST_PASSES, SEARCH_ENTRIES // size)

    def inside(self, position: int) -> _Sweep:
        """The plans inside the bucket above an edge, exactly."""
        edge = int(self.sweep.thresholds[position])
        start = torch.zeros(3, 1, dtype=torch.int64)  # rows: n, parameters, adapters above it
        steps = torch.zeros(3, BUCKETS, dtype=torch.int64)  # what changes at each threshold
        for name, target in self.targets.items():
            above, counts = fine_histogram(self.scores[name], edge >> 16)
            # What a target adds changes at its own entries only.
            own = torch.nonzero(counts).flatten().flip(0)
            n = above + torch.cat([counts.new_zeros(1), counts[own].cumsum(0)])
            thresholds = edge + torch.cat([own.new_tensor([BUCKETS]), own])
            values = torch.stack([n, *target.size(thresholds, n)])
            start += values[:, :1]
            steps[:, own] += values.diff(dim=1)
        occupied = torch.nonzero(steps[0]).flatten().flip(0)
        return _Sweep(edge + occupied, *(start + steps[:, occupied].cumsum(1)))

    def look(
        self, worth: Callable[[int], bool], order: Tensor, take: Callable[[_Sweep], None]
    ) -> None:
        """Looks into the buckets that are worth it, in order, as far as passes last."""
        left = self.passes
        show = phase('planning, exact budget', 'passes')
        for position in order.tolist():
            if left and worth(position):
                take(self.inside(position))
                left -= 1
                show(self.passes - left, self.passes)  # at most: few are mostly enough
        show(self.passes, self.passes)


def threshold_for_budget(
    scores: Mapping[str, Tensor],
    budget: int,
    *,
    rules: Rules,
    reserved: int,
) -> Threshold:
    """The threshold of the largest plan within a budget.

    Args:
        scores: fp32 scores by target name.
        budget: Trainable parameters of adapters and vectors.
        rules: What the plan follows; the ratio of an ablation is at least 1.
        reserved: Parameters trained besides, only for the message.

    Returns:
        The threshold; entries with equal scores are selected together.

    Raises:
        PlanError: If no plan with an adapter fits, naming the smallest that does.
    """
    if not any(score.numel() for score in scores.values()):
        raise PlanError('there is no score: expected at least one competing entry')
    search = _Search(scores, rules)
    best = (-1, 0, 0)  # (parameters, selected entries, threshold)

    def take(sweep: _Sweep) -> None:
        nonlocal best
        fits = (sweep.params <= budget) & (sweep.adapters > 0)
        if bool(fits.any()):
            at = int(torch.where(fits, sweep.params, -1).argmax())
            best = max(
                best, (int(sweep.params[at]), int(sweep.counts[at]), int(sweep.thresholds[at]))
            )

    take(search.sweep)
    least, most = search.least, search.most
    # From the budget outwards: there the best plan most likely is.
    order = (search.sweep.params - budget).abs().argsort(stable=True)
    search.look(lambda i: int(least[i]) <= budget and int(most[i]) > best[0] < budget, order, take)
    if best[0] < 0:
        raise PlanError(
            f'budget_params={budget + reserved} is too small for any adapter: '
            + _smallest(search, reserved)
        )
    return Threshold(best[2] - 1, 0)  # bit patterns are integers: above t - 1 is at least t


def _smallest(search: _Search, reserved: int) -> str:
    """Names the smallest plan with an adapter."""
    smallest: int | None = None

    def take(sweep: _Sweep) -> None:
        nonlocal smallest
        sizes = sweep.params[sweep.adapters > 0]
        if len(sizes) and (smallest is None or int(sizes.min()) < smallest):
            smallest = int(sizes.min())

    take(search.sweep)
    least = search.least
    order = least.argsort(stable=True)
    search.look(lambda i: smallest is None or int(least[i]) < smallest, order, take)
    if smallest is None:
        return "no threshold gives a rank of 1: try rank_rule='count' or min_rank=1"
    beside = f', {reserved} of them beside the adapters and vectors' if reserved else ''
    return f'the smallest plan with an adapter trains {smallest + reserved} parameters{beside}'


def _maxima_of(scores: Mapping[str, Tensor]) -> Iterator[list[Tensor]]:
    """Room for the row and column maxima of each target in turn, int32.

    In one piece: small tensors that stay, made between large ones that go, would
    leave holes that the allocator cannot use again, ten times their own size.
    """
    sides = [list(score.shape) if score.dim() > 1 else [] for score in scores.values()]
    room = torch.empty(sum(sum(side) for side in sides), dtype=torch.int32)
    for side, part in zip(sides, torch.split(room, [sum(side) for side in sides]), strict=True):
        yield list(torch.split(part, side))
