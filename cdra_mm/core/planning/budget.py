"""The selection threshold whose plan just fits a parameter budget (design D4).

The size of a plan is a sum over the targets, and what each adds depends on the threshold and its
own entries only. So one pass over the scores, by the upper 16 bits, gives the plans of all
thresholds that are less than 1 % apart (the edges of buckets), and one more, by the lower 16
bits, all those inside one bucket (as in `selection`): nothing is sorted or copied.

Where no plan is smaller than one of fewer entries (`Rules.monotone`), the best one lies in the
bucket in which the size passes the budget: two passes find it. Elsewhere the few buckets whose
ends come nearest to the budget are looked into, and the best plan seen counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cdra_mm.errors import PlanError
from cdra_mm.progress import counted

from .selection import BUCKETS, FINITE_BUCKETS, Threshold, coarse_histogram, fine_histogram

__all__ = ['MORE_RANK', 'SizeAt', 'threshold_for_budget']

# What gives a rank to blocks that have none.
MORE_RANK = "try rank_rule='count', a larger rank_alpha, or min_rank=1"
LOOKS = 6  # buckets looked into where sizes can fall

# A target's trained parameters and adapters, by its name, thresholds (bit patterns) and the
# numbers of its entries that reach them; int64, one of each for every threshold.
SizeAt = Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]


class _Sweep(NamedTuple):
    """Plans by threshold, highest threshold first. All int64 ``[thresholds]``."""

    thresholds: Tensor  # bit patterns: entries at or above are selected
    counts: Tensor  # selected entries
    params: Tensor  # trainable parameters
    adapters: Tensor

    def best(self, room: int, most_entries: bool) -> tuple[int, int, int]:
        """The largest plan with an adapter in the room: parameters (-1 if none), count, threshold.

        Of equal ones that of the fewest or of the most entries.
        """
        sizes = torch.where((self.params <= room) & (self.adapters > 0), self.params, -1)
        at = int(torch.nonzero(sizes == sizes.max())[-1 if most_entries else 0])
        return int(sizes[at]), int(self.counts[at]), int(self.thresholds[at])


def threshold_for_budget(
    scores: Mapping[str, Tensor],
    budget: int,
    size_at: SizeAt,
    *,
    reserved: int = 0,
    monotone: bool = True,
    most_entries: bool = False,
) -> Threshold:
    """The threshold of the largest plan within a budget.

    Args:
        scores: Scores by target name.
        budget: Trainable backbone parameters.
        size_at: See `SizeAt`.
        reserved: Parameters of the budget that are trained besides.
        monotone: Whether the size of a plan never falls with more entries.
        most_entries: Of equal plans that of the most entries; else of the fewest in its bucket.

    Returns:
        The threshold; entries with equal scores are selected together.

    Raises:
        PlanError: If no plan with an adapter fits, naming the smallest.
    """
    if not any(score.numel() for score in scores.values()):
        raise PlanError('there is no score: expected at least one competing entry')
    room = budget - reserved
    edges = _edges(scores, size_at)
    sweeps, best = [edges], edges.best(room, most_entries)

    def look(positions: list[int]) -> None:
        nonlocal best
        for position in positions:
            if best[0] < max(room, 0) or most_entries:  # until the budget is met exactly
                sweeps.append(_inside(scores, size_at, int(edges.thresholds[position])))
                best = max(best, sweeps[-1].best(room, most_entries))

    look(_nearest(edges.params, room)[: 1 if monotone else LOOKS])
    if best[0] < 0:
        look(torch.nonzero(edges.adapters).flatten()[:1].tolist())
    if best[0] < 0:
        adapted = [sweep.params[sweep.adapters > 0] for sweep in sweeps]
        sizes = [int(params.min()) for params in adapted if len(params)]
        raise PlanError(
            f'budget_params={budget} is too small for any adapter: {_smallest(sizes, reserved)}'
        )
    return Threshold(best[2] - 1, 0)  # bit patterns are integers: above t - 1 is at least t


def _smallest(sizes: list[int], reserved: int) -> str:
    if not sizes:
        return f'no threshold gives a rank of 1: {MORE_RANK}'
    beside = f', {reserved} of them beside the adapters and vectors' if reserved else ''
    return f'the smallest plan with an adapter trains {min(sizes) + reserved} parameters{beside}'


def _nearest(params: Tensor, room: int) -> list[int]:
    """Positions of the buckets between edges, first where the size passes the room."""
    before = torch.cat([params.new_zeros(1), params[:-1]])
    away = (params - room).abs().minimum((before - room).abs())
    return torch.where((before <= room) != (params <= room), -1, away).argsort(stable=True).tolist()


def _edges(scores: Mapping[str, Tensor], size_at: SizeAt) -> _Sweep:
    """The plans at the lower edges of the occupied buckets."""
    changes = _Changes(FINITE_BUCKETS, 0, 16)
    for name, score in counted(scores.items(), 'planning, every budget', unit='weights'):
        counts = coarse_histogram(name, score)[:FINITE_BUCKETS]
        changes.add(0, counts, size_at, name)
    return changes.swept()


def _inside(scores: Mapping[str, Tensor], size_at: SizeAt, edge: int) -> _Sweep:
    """The plans inside the bucket above an edge, exactly."""
    changes = _Changes(BUCKETS, edge, 0)
    for name, score in counted(scores.items(), 'planning, exact budget', unit='weights'):
        above, counts = fine_histogram(score, edge >> 16)
        changes.add(above, counts, size_at, name)
    return changes.swept()


class _Changes:
    """What changes at each of so many thresholds, summed over the targets.

    The bit pattern of the n-th threshold is ``first + (n << shift)``.
    """

    def __init__(self, thresholds: int, first: int, shift: int) -> None:
        self.thresholds, self.first, self.shift = thresholds, first, shift
        # Entries, parameters and adapters.
        self.start = torch.zeros(3, 1, dtype=torch.int64, device='cpu')
        self.steps = torch.zeros(3, thresholds, dtype=torch.int64, device='cpu')

    def add(self, above: int, counts: Tensor, size_at: SizeAt, name: str) -> None:
        """Adds a target, by its entries above the last threshold and from each one to the next.

        Its size changes at its own entries only, so it is asked for at no others.
        """
        own = torch.nonzero(counts).flatten().flip(0)
        n = above + torch.cat([counts.new_zeros(1), counts[own].cumsum(0)])
        bits = self._bits(torch.cat([own.new_tensor([self.thresholds]), own]))
        values = torch.stack([n, *size_at(name, bits, n)])
        self.start += values[:, :1]
        self.steps[:, own] += values.diff(dim=1)

    def swept(self) -> _Sweep:
        """The plans at the thresholds that an entry reaches; at others they repeat."""
        reached = torch.nonzero(self.steps[0]).flatten().flip(0)
        sums = self.start + self.steps[:, reached].cumsum(1)
        return _Sweep(self._bits(reached), *sums)

    def _bits(self, positions: Tensor) -> Tensor:
        return self.first + (positions << self.shift)
