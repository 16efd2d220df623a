"""What a plan holds of what the scores have found, and what is unhealthy about it.

The thresholds lie between measured cases: a DeiT-Tiny in good health and one that was recovered
from 3 bits, on classification and dense data (docs/reliability.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdra_mm.core import Plan

__all__ = ['PlanHealth', 'masses_of', 'plan_health']

CONCENTRATED = 0.15  # of all scores in one target
LOST = 0.5  # of the selected entries in matrices of rank 0
FEW = 0.1  # of the matrices are adapted
NAMED = 3


@dataclass(frozen=True)
class PlanHealth:
    """Shares of the scores' sum, of the entries and of the matrices, each of 1.

    Attributes:
        largest: The targets with the most of the scores' sum, and their shares.
        held: What the trained targets have of it.
        lost: Selected entries in matrices that stay frozen for their rank of 0.
        adapted: Matrices that are adapted, of those that competed.
        by_gradient: Whether the scores are squares of mean gradients.
        everything: Whether all matrices competed; of a part of them one may hold much.
    """

    largest: tuple[tuple[str, float], ...]
    held: float
    lost: float
    adapted: float
    by_gradient: bool = False
    everything: bool = True

    @property
    def text(self) -> str:
        """What is held, in one line."""
        named = ', '.join(f'{name} {100 * share:.1f} %' for name, share in self.largest)
        held = f'{100 * self.held:.1f} % of {self._what}'
        return f'the trained targets hold {held}; the largest: {named}'

    @property
    def _what(self) -> str:
        return "the mean gradients' energy" if self.by_gradient else 'all scores'

    @property
    def warnings(self) -> list[str]:
        """What is unhealthy, each with what to do."""
        found = []
        name, share = self.largest[0]
        if share >= CONCENTRATED and self.everything:
            found.append(
                f'{name} alone holds {100 * share:.0f} % of {self._what} (12 % at most on weights '
                'in good health): the weights may be damaged, or the images not scaled as in their '
                'pretraining; look at mean and std of the data_preprocessor and at what the '
                'frozen backbone reaches (method linear)'
            )
        if self.lost >= LOST:
            found.append(
                f'{100 * self.lost:.0f} % of the selected entries lie in matrices that stay frozen '
                "for a rank of 0: set rank_rule='count', or allocation='descent'"
            )
        if self.adapted < FEW:
            found.append(
                f'{100 * self.adapted:.0f} % of the matrices are adapted: set a larger budget'
                + ('' if self.by_gradient else ", rank_rule='count', or allocation='descent'")
            )
        return found


def masses_of(scores: Mapping[str, Tensor], *, signed: bool) -> dict[str, float]:
    """Sum of each target's scores; of their squares where they are gradients."""
    return {
        name: sum(
            float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2
            if signed
            else float(part.sum(dtype=torch.float64))
            for part in score.reshape(-1).split(1 << 24)
        )
        for name, score in scores.items()
    }


def plan_health(
    plan: Plan, masses: Mapping[str, float], matrices: Collection[str]
) -> PlanHealth | None:
    """Measures a plan that was made from scores.

    Args:
        plan: The plan.
        masses: Sum of the scores of each target that competed, see `masses_of`.
        matrices: Names of the backbone's targets that are matrices.

    Returns:
        None where the plan has nothing to do with the scores.
    """
    total = sum(masses.values())
    if not total or not (plan.blocks or plan.dropped or plan.sparse):
        return None
    vectors = {vector.name for vector in plan.vectors}
    adapted = {block.name for block in plan.blocks} | {matrix.name for matrix in plan.sparse}
    order = sorted(masses, key=lambda name: -masses[name])[:NAMED]
    lost = sum(block.num_sensitive for block in plan.dropped)
    return PlanHealth(
        largest=tuple((name, masses[name] / total) for name in order),
        held=sum(masses[name] for name in adapted | vectors if name in masses) / total,
        lost=lost / max(plan.num_sensitive, 1),
        adapted=len(adapted) / max(len(masses.keys() & set(matrices)), 1),
        by_gradient=plan.settings.get('statistic') == 'mean_gradient',
        everything=set(matrices) <= masses.keys(),
    )
