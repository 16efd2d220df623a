"""What a target adds to the size of a plan, at any selection threshold (see `budget`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdra_mm.errors import PlanError

from .ablations import NO_ABLATION, Ablation
from .ranks import check_rank_rule, unbounded_rank
from .selection import bits_of

__all__ = ['Rules', 'TargetSizes', 'shifted']


@dataclass(frozen=True)
class Rules:
    """What a plan follows beside the masks; see `make_plan`.

    Raises:
        PlanError: If a setting is out of range.
    """

    rank_rule: str | int = 'eq7'
    min_rank: int = 0
    beta: float = 5
    ablation: Ablation = NO_ABLATION

    def __post_init__(self) -> None:
        check_rank_rule(self.rank_rule, self.min_rank)
        beta = self.beta
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not beta > 0:
            raise PlanError(f'beta={beta!r}: expected a number above 0')


class TargetSizes:
    """What one target adds to a plan, as a function of the threshold.

    Attributes:
        shape: Of the target.
        maxima: Row ``[O]`` and column ``[I]`` maxima as sorted bit patterns,
            int32, on the CPU; none for a vector.
        rules: See `Rules`; the block of a ratio below 1 depends on more than the maxima.
    """

    def __init__(self, score: Tensor, maxima: list[Tensor], rules: Rules) -> None:
        self.shape, self.maxima, self.rules = tuple(score.shape), maxima, rules
        for out, dim in zip(maxima, (1, 0), strict=False):
            out.copy_(bits_of(score.amax(dim)).sort().values)

    def size(self, thresholds: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """Trainable parameters and adapters (0 or 1) at thresholds that n entries reach."""
        if not self.maxima:
            return self._vector_params(n), torch.zeros_like(n)
        rows, cols = self._sides(thresholds)
        rank = self._rank(n, rows, cols)
        high, wide = self.rules.ablation.sides(rows, cols, self.shape)
        rank = rank.minimum(high).minimum(wide)
        params = self._by_case(n, rank * (high + wide))
        return params, (params > 0).to(torch.int64)

    def bounds(self, thresholds: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """Least and most parameters between the threshold before and each one."""
        before = shifted(n)
        if not self.maxima:
            return self._vector_params(before), self._vector_params(n)
        rows, cols = self._sides(thresholds)
        rows_before, cols_before = shifted(rows), shifted(cols)
        if self.rules.rank_rule == 'count':
            least = before // (rows + cols).clamp(min=1)
            most = n // (rows_before + cols_before).clamp(min=2)
            least, most = (rank.clamp(min=self.rules.min_rank) for rank in (least, most))
            least = least.minimum(rows_before).minimum(cols_before) * (before > 0)
            most = most.minimum(rows).minimum(cols)
        else:
            least = self._rank(before, rows_before, cols_before)
            most = self._rank(n, rows, cols)
        ablation = self.rules.ablation
        ends = (
            ablation.sides(rows_before, cols_before, self.shape),
            ablation.sides(rows, cols, self.shape),
        )
        (low_high, top_high), (low_wide, top_wide) = (
            (a.minimum(b), a.maximum(b)) for a, b in zip(*ends, strict=True)
        )
        low = least.minimum(low_high).minimum(low_wide) * (low_high + low_wide)
        top = most.minimum(top_high).minimum(top_wide) * (top_high + top_wide)
        if self.rules.rank_rule == 'count' and ablation.quadrant == '10':  # r (|R| + |C|) <= n
            top = n.maximum(self.rules.min_rank * (rows + cols))
        return self._bounds_by_case(before, n, low, top)

    def _by_case(self, n: Tensor, cdra: Tensor) -> Tensor:
        """The parameters, from those where CDRA takes the matrix."""
        if self.rules.ablation.case1 and self.rules.ablation.case2:
            return cdra
        case1, case2 = self._cases(n, cdra)
        return torch.where(self.rules.ablation.is_case2(n, self.shape), case2, case1)

    def _bounds_by_case(
        self, before: Tensor, n: Tensor, low: Tensor, top: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Likewise the bounds; between two thresholds case 1 may end, and never begin."""
        ablation = self.rules.ablation
        if ablation.case1 and ablation.case2:
            return low, top
        ended, ends = (ablation.is_case2(count, self.shape) for count in (before, n))
        low1, low2 = self._cases(before, low)
        top1, top2 = self._cases(n, top)
        least = torch.where(ended, low2, torch.where(ends, low1.minimum(low2), low1))
        most = torch.where(ended, top2, torch.where(ends, top1.maximum(top2), top1))
        return least, most

    def _cases(self, n: Tensor, cdra: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters if this were Eq. 1's case 1, and if it were case 2."""
        ablation = self.rules.ablation
        lora = torch.full_like(cdra, ablation.lora_params(self.shape))
        return cdra if ablation.case1 else n, cdra if ablation.case2 else lora

    def _sides(self, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of the block, of the size that the ablation gives it."""
        rows, cols = (
            len(maxima) - torch.searchsorted(maxima, thresholds.to(torch.int32))
            for maxima in self.maxima
        )
        resized = self.rules.ablation.resized
        return resized(rows, self.shape[0]), resized(cols, self.shape[1])

    def _rank(self, n: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        # Where nothing is selected the block is empty: 1 x 1 avoids a division by zero.
        area = self.shape[0] * self.shape[1]
        rule, least = self.rules.rank_rule, self.rules.min_rank
        rank = unbounded_rank(n, rows.clamp(min=1), cols.clamp(min=1), area, rule)
        return rank.clamp(min=least).minimum(rows).minimum(cols) * (n > 0)

    def _vector_params(self, n: Tensor) -> Tensor:
        length = self.shape[0]
        # In float64, as `trains_whole` decides: torch would take a Python float as float32.
        whole = n.double() * self.rules.beta >= length
        return torch.where(n > 0, torch.where(whole, length, n), 0)


def shifted(values: Tensor) -> Tensor:
    """The value at the threshold before, 0 at the first."""
    return torch.cat([values.new_zeros(1), values[:-1]])
