"""The selection threshold whose plan just fits a parameter budget (design D4).

The number of trainable parameters is not monotone in the threshold (Eq. 7's
rank can fall while its block grows), so a bisection may miss the best plan.
Instead every threshold is tried, at almost no cost: for a threshold t

    n(t)   = entries >= t            from a histogram of each matrix
    |R(t)| = rows whose maximum >= t      from the sorted row maxima
    |C(t)| = columns whose maximum >= t   from the sorted column maxima

and Eq. 7 gives the ranks of all matrices at once. First over the buckets of
the upper 16 bits of the scores, then, inside the buckets around the best one,
over the lower 16 bits, which is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import PlanError
from .ranks import unbounded_rank
from .selection import BUCKETS, bits_of, histogram

__all__ = ['count_for_budget']


@dataclass(frozen=True)
class _Extent:
    """What the parameter count of one target depends on; bit patterns, ascending."""

    shape: tuple[int, ...]
    row_max: Tensor  # int32 [O]; empty for a vector
    col_max: Tensor  # int32 [I]


@dataclass(frozen=True)
class _Sweep:
    """Plans by threshold, highest threshold first."""

    counts: Tensor  # selected entries, int64 [thresholds]
    params: Tensor  # trainable parameters
    adapters: Tensor  # matrices with a rank of at least 1

    def best(self, budget: int) -> int | None:
        """Position of the largest plan with an adapter within the budget, or None."""
        fits = (self.params <= budget) & (self.adapters > 0)
        if not bool(fits.any()):
            return None
        return int(torch.where(fits, self.params, -1).argmax())


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
        The number of selected entries; the search is over thresholds, so
        entries with equal scores are selected together.

    Raises:
        PlanError: If no plan with an adapter fits, naming the smallest that does.
    """
    extents = [_extent(score) for score in scores.values()]
    rules = (rank_rule, min_rank, beta)
    coarse = torch.stack([histogram(score).cpu() for score in scores.values()])
    edges = torch.arange(BUCKETS - 1, -1, -1)
    edges = edges[coarse.sum(0)[edges] > 0]
    sweep = _sweep(extents, edges << 16, _above(coarse, edges), rules)

    # A plan inside a bucket can be better than those at its edges: look into the bucket of the
    # best plan, and into every bucket that a curve through the edges crosses the budget in.
    best = sweep.best(budget)
    inside = _crossings(sweep.params, budget) | {0}
    if best is not None:
        inside |= {best, min(best + 1, len(edges) - 1)}
    found: list[tuple[int, int]] = []
    smallest: list[int] = []
    for position in sorted(inside):
        upper = int(edges[position])
        fine = torch.stack([histogram(score, upper).cpu() for score in scores.values()])
        lower = torch.arange(BUCKETS - 1, -1, -1)
        lower = lower[fine.sum(0)[lower] > 0]
        base = coarse[:, upper + 1 :].sum(1, keepdim=True)
        part = _sweep(extents, (upper << 16) | lower, base + _above(fine, lower), rules)
        smallest += part.params[part.adapters > 0].tolist()[:1]
        at = part.best(budget)
        if at is not None:
            found.append((int(part.params[at]), int(part.counts[at])))
    if not found:
        smallest += sweep.params[sweep.adapters > 0].tolist()
        need = f'the smallest plan with an adapter trains {min(smallest) + reserved}'
        if not smallest:
            need = 'no threshold gives an adapter of rank 1: try rank_rule="count" or min_rank=1'
        raise PlanError(
            f'budget_params={budget + reserved} is too small for any adapter: {need}'
            + (f', {reserved} of it trained besides' if reserved and smallest else '')
        )
    return max(found)[1]


def _extent(score: Tensor) -> _Extent:
    if score.dim() == 1:
        empty = torch.zeros(0, dtype=torch.int32)
        return _Extent(tuple(score.shape), empty, empty)
    maxima = [bits_of(score.amax(dim).contiguous()).sort().values.cpu() for dim in (1, 0)]
    return _Extent(tuple(score.shape), *maxima)


def _above(counts: Tensor, order: Tensor) -> Tensor:
    """Entries at or above each bucket of a descending order. ``[targets, thresholds]``."""
    return counts[:, order].cumsum(1)


def _sweep(
    extents: list[_Extent], thresholds: Tensor, counts: Tensor, rules: tuple[str | int, int, float]
) -> _Sweep:
    """The plans of some thresholds (bit patterns, descending)."""
    rank_rule, min_rank, beta = rules
    thresholds = thresholds.to(torch.int32)
    params = torch.zeros(len(thresholds), dtype=torch.int64)
    adapters = torch.zeros_like(params)
    for extent, n in zip(extents, counts, strict=True):
        if len(extent.shape) == 1:
            whole = n * beta >= extent.shape[0]
            params += torch.where(n > 0, torch.where(whole, extent.shape[0], n), 0)
            continue
        rows = extent.shape[0] - torch.searchsorted(extent.row_max, thresholds)
        cols = extent.shape[1] - torch.searchsorted(extent.col_max, thresholds)
        area = extent.shape[0] * extent.shape[1]
        # Where nothing is selected the block is empty: 1 x 1 avoids a division by zero.
        rank = unbounded_rank(n, rows.clamp(min=1), cols.clamp(min=1), area, rank_rule)
        rank = rank.clamp(min=min_rank).minimum(rows).minimum(cols) * (n > 0)
        params += rank * (rows + cols)
        adapters += rank > 0
    return _Sweep(counts.sum(0), params, adapters)


def _crossings(params: Tensor, budget: int) -> set[int]:
    """Positions whose plan fits while a neighbour's does not, and that neighbour."""
    fits = params <= budget
    change = torch.nonzero(fits[1:] != fits[:-1]).flatten().tolist()
    return {position + step for position in change for step in (0, 1)}
