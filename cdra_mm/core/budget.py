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
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import PlanError
from .ranks import unbounded_rank
from .selection import bits_of, histograms

__all__ = ['count_for_budget']

# Entries read while looking into buckets: some passes over a large model, hundreds over a small
# one. Beyond it the best plan found so far stands; the edges are less than 1 % apart.
SEARCH_ENTRIES = 1 << 29
LEAST_PASSES = 4


@dataclass(frozen=True)
class _Extent:
    """What the size of one target's adapter depends on, besides n: sorted bit patterns."""

    shape: tuple[int, ...]
    row_max: Tensor  # int32 [O], ascending; empty for a vector
    col_max: Tensor  # int32 [I]


@dataclass(frozen=True)
class _Sweep:
    """Plans by threshold, highest threshold first."""

    counts: Tensor  # selected entries, int64 [thresholds]
    params: Tensor  # trainable parameters
    adapters: Tensor  # matrices with a rank of at least 1
    least: Tensor  # bounds of the parameters between the threshold before and this one
    most: Tensor


class _Search:
    """Plans of all thresholds of some scores."""

    def __init__(
        self, scores: Mapping[str, Tensor], rank_rule: str | int, min_rank: int, beta: float
    ) -> None:
        self.scores, self.rules = scores, (rank_rule, min_rank, beta)
        self.coarse = torch.stack(list(histograms(scores)))
        self.extents = [_extent(score) for score in scores.values()]
        self.edges = _occupied(self.coarse)
        self.sweep = self._sweep(self.edges << 16, _above(self.coarse, self.edges))
        size = sum(score.numel() for score in scores.values())
        self.passes = max(LEAST_PASSES, SEARCH_ENTRIES // size)

    def inside(self, position: int) -> _Sweep:
        """The plans inside the bucket below an edge, exactly."""
        upper = int(self.edges[position])
        fine = torch.stack(list(histograms(self.scores, upper)))
        lower = _occupied(fine)
        base = self.coarse[:, upper + 1 :].sum(1, keepdim=True)
        return self._sweep((upper << 16) | lower, base + _above(fine, lower))

    def look(
        self, worth: Callable[[int], bool], order: Tensor, take: Callable[[_Sweep], None]
    ) -> None:
        """Looks into the buckets that are worth it, in order, as far as passes last."""
        left = self.passes
        for position in order.tolist():
            if left and worth(position):
                take(self.inside(position))
                left -= 1

    def _sweep(self, thresholds: Tensor, counts: Tensor) -> _Sweep:
        """Plans of thresholds (bit patterns, descending); counts ``[targets, thresholds]``."""
        rank_rule, min_rank, beta = self.rules
        thresholds = thresholds.to(torch.int32)
        params = torch.zeros(len(thresholds), dtype=torch.int64)
        adapters, least, most = params.clone(), params.clone(), params.clone()
        for extent, n in zip(self.extents, counts, strict=True):
            before = _shifted(n)
            if len(extent.shape) == 1:
                length = extent.shape[0]
                params += _vector_params(n, length, beta)
                least += _vector_params(before, length, beta)
                most += _vector_params(n, length, beta)
                continue
            area = extent.shape[0] * extent.shape[1]
            rows = extent.shape[0] - torch.searchsorted(extent.row_max, thresholds)
            cols = extent.shape[1] - torch.searchsorted(extent.col_max, thresholds)

            def rank_of(n: Tensor, rows: Tensor, cols: Tensor, area: int = area) -> Tensor:
                # Where nothing is selected the block is empty: 1 x 1 avoids a division by zero.
                rank = unbounded_rank(n, rows.clamp(min=1), cols.clamp(min=1), area, rank_rule)
                return rank.clamp(min=min_rank).minimum(rows).minimum(cols) * (n > 0)

            rank = rank_of(n, rows, cols)
            params += rank * (rows + cols)
            adapters += rank > 0
            rows_before, cols_before = _shifted(rows), _shifted(cols)
            if rank_rule == 'count':
                low = before // (rows + cols).clamp(min=1)
                low = low.clamp(min=min_rank).minimum(rows_before).minimum(cols_before)
                least += low * (before > 0) * (rows_before + cols_before)
                most += n.maximum(min_rank * (rows + cols))
            else:
                least += rank_of(before, rows_before, cols_before) * (rows_before + cols_before)
                most += rank * (rows + cols)
        return _Sweep(counts.sum(0), params, adapters, least, most)


def count_for_budget(
    scores: Mapping[str, Tensor],
    budget: int,
    *,
    rank_rule: str | int,
    min_rank: int,
    beta: float,
    reserved: int = 0,
) -> int:
    """How many entries to select for the largest plan within a budget.

    Args:
        scores: fp32 scores by target name.
        budget: Trainable parameters of adapters and vectors.
        rank_rule: See `dynamic_rank`.
        min_rank: See `dynamic_rank`.
        beta: See `make_plan`.
        reserved: Parameters trained besides, only for the message.

    Returns:
        The number of selected entries; entries with equal scores are selected together.

    Raises:
        PlanError: If no plan with an adapter fits, naming the smallest that does.
    """
    search = _Search(scores, rank_rule, min_rank, beta)
    best = (-1, 0)  # (parameters, selected entries)

    def take(sweep: _Sweep) -> None:
        nonlocal best
        fits = (sweep.params <= budget) & (sweep.adapters > 0)
        if bool(fits.any()):
            at = int(torch.where(fits, sweep.params, -1).argmax())
            best = max(best, (int(sweep.params[at]), int(sweep.counts[at])))

    take(search.sweep)
    least, most = search.sweep.least, search.sweep.most
    # From the budget outwards: there the best plan most likely is.
    order = (search.sweep.params - budget).abs().argsort(stable=True)
    search.look(lambda i: int(least[i]) <= budget and int(most[i]) > best[0] < budget, order, take)
    if best[0] < 0:
        raise PlanError(
            f'budget_params={budget + reserved} is too small for any adapter: '
            + _smallest(search, reserved)
        )
    return best[1]


def _smallest(search: _Search, reserved: int) -> str:
    """Names the smallest plan with an adapter."""
    smallest: int | None = None

    def take(sweep: _Sweep) -> None:
        nonlocal smallest
        sizes = sweep.params[sweep.adapters > 0]
        if len(sizes) and (smallest is None or int(sizes.min()) < smallest):
            smallest = int(sizes.min())

    take(search.sweep)
    least = search.sweep.least
    order = least.argsort(stable=True)
    search.look(lambda i: smallest is None or int(least[i]) < smallest, order, take)
    if smallest is None:
        return "no threshold gives a rank of 1: try rank_rule='count' or min_rank=1"
    beside = f', {reserved} of them beside the adapters and vectors' if reserved else ''
    return f'the smallest plan with an adapter trains {smallest + reserved} parameters{beside}'


def _extent(score: Tensor) -> _Extent:
    if score.dim() == 1:
        empty = torch.zeros(0, dtype=torch.int32)
        return _Extent(tuple(score.shape), empty, empty)
    maxima = [bits_of(score.amax(dim).contiguous()).sort().values.cpu() for dim in (1, 0)]
    return _Extent(tuple(score.shape), *maxima)


def _vector_params(n: Tensor, length: int, beta: float) -> Tensor:
    return torch.where(n > 0, torch.where(n * beta >= length, length, n), 0)


def _occupied(counts: Tensor) -> Tensor:
    """Buckets that hold an entry of any target, highest first."""
    return torch.nonzero(counts.sum(0)).flatten().flip(0)


def _above(counts: Tensor, order: Tensor) -> Tensor:
    """Entries at or above each bucket of a descending order. ``[targets, buckets]``."""
    return counts[:, order].cumsum(1)


def _shifted(values: Tensor) -> Tensor:
    """The value at the threshold before, 0 at the first."""
    return torch.cat([values.new_zeros(1), values[:-1]])
