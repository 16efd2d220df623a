"""What each target adds to the size of a plan, at any selection threshold (see `budget`).

For a threshold t all that the size depends on is known at almost no cost:

    n(t)   = entries >= t                 from a histogram of the target
    |R(t)| = rows whose maximum >= t      from the sorted row maxima
    |C(t)| = columns whose maximum >= t   from the sorted column maxima
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .cases import are_many, num_trained
from .ranks import unbounded_rank
from .rules import Rules
from .selection import bits_of

__all__ = ['PlanSizes']


class PlanSizes:
    """What the targets of some scores add to a CDRA plan, as functions of the threshold.

    Args:
        scores: Scores by target name.
        rules: See `Rules`; the block of a ratio below 1 depends on more than the maxima.
    """

    def __init__(self, scores: Mapping[str, Tensor], rules: Rules) -> None:
        self.scores, self.rules = scores, rules
        self._room = dict(zip(scores, _room_for(scores), strict=True))
        self._maxima: dict[str, list[Tensor]] = {}  # rows and columns, sorted bit patterns

    def __call__(self, name: str, thresholds: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """Trainable parameters and adapters (0 or 1) of a target; see `budget.SizeAt`."""
        shape = tuple(self.scores[name].shape)
        if len(shape) == 1:
            return num_trained(n, shape[0], self.rules.beta), torch.zeros_like(n)
        ablation = self.rules.ablation
        rows, cols = (
            ablation.resized(len(maxima) - torch.searchsorted(maxima, thresholds.int()), side)
            for maxima, side in zip(self._maxima_of(name), shape, strict=True)
        )
        # Where nothing is selected the block is empty: 1 x 1 avoids a division by zero.
        sides = rows.clamp(min=1), cols.clamp(min=1)
        rules, area = self.rules, shape[0] * shape[1]
        rank = unbounded_rank(n, *sides, area, rules.rank_rule, rules.exact_alpha)
        rank = rank.clamp(min=rules.min_rank).minimum(rows).minimum(cols) * (n > 0)
        rows, cols = ablation.sides(rows, cols, shape)
        params = rank.minimum(rows).minimum(cols) * (rows + cols)
        if not (ablation.case1 and ablation.case2):
            size = ablation.lora_params(shape)
            few = params if ablation.case1 else n
            many = params if ablation.case2 else torch.full_like(n, size)
            params = torch.where(are_many(n, size, ablation.alpha), many, few)
        return params, (params > 0).to(torch.int64)

    def _maxima_of(self, name: str) -> list[Tensor]:
        if name not in self._maxima:
            self._maxima[name] = self._room[name]
            for out, dim in zip(self._maxima[name], (1, 0), strict=True):
                out.copy_(bits_of(self.scores[name].amax(dim)).sort().values)
        return self._maxima[name]


def _room_for(scores: Mapping[str, Tensor]) -> Iterator[list[Tensor]]:
    """Room for the row and column maxima of each target in turn, int32.

    In one piece: small tensors that stay, made between large ones that go, would
    leave holes that the allocator cannot use again, ten times their own size.
    """
    sides = [list(score.shape) if score.dim() > 1 else [] for score in scores.values()]
    room = torch.empty(sum(map(sum, sides)), dtype=torch.int32, device='cpu')
    for side, part in zip(sides, torch.split(room, list(map(sum, sides))), strict=True):
        yield list(torch.split(part, side))
