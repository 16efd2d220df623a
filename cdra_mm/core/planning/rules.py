"""What a plan follows beside the masks."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from cdra_mm.errors import PlanError
from cdra_mm.settings import check_settings, setting

from .ablations import NO_ABLATION, Ablation
from .ranks import check_rank_rule, exact

__all__ = ['Rules']


@dataclass(frozen=True)
class Rules:
    """The settings of `make_plan` that decide about a target.

    Raises:
        PlanError: If a setting is out of range.
    """

    rank_rule: str | int = 'eq7'
    min_rank: int = 0
    beta: float = setting(5, above=0)
    ablation: Ablation = NO_ABLATION
    rank_alpha: float = 1

    def __post_init__(self) -> None:
        check_rank_rule(self.rank_rule, self.min_rank, self.rank_alpha)
        check_settings(self, PlanError)

    @cached_property
    def exact_alpha(self) -> Fraction:
        """The factor on the selected entries in Eq. 7; see `dynamic_rank`."""
        return exact(self.rank_alpha)

    @property
    def record(self) -> dict[str, Any]:
        """What a plan keeps of them; a factor of 1 is left out, as in plans of older releases."""
        factor = {} if self.rank_alpha == 1 else {'rank_alpha': self.rank_alpha}
        own = {'rank_rule': self.rank_rule, 'min_rank': self.min_rank, **factor}
        return {**own, 'beta': self.beta, **self.ablation.changes}

    @property
    def monotone(self) -> bool:
        """Whether no plan is smaller than one of fewer entries.

        It can be with ``'count'``, as n / (|R| + |C|) can fall; where the block is not R x C, as
        the others shrink when it grows; where CDRA follows on single entries, of which it
        may train fewer; and where LoRA follows on a block that can be larger: by its rank, or by
        a factor above the one with which LoRA's parameters are compared.
        """
        ablation = self.ablation
        if not ablation.case1:
            return not ablation.case2
        if self.rank_rule == 'count' or ablation.quadrant != '10':
            return False
        least = max(self.min_rank, self.rank_rule if isinstance(self.rank_rule, int) else 0)
        smaller = least <= ablation.lora_rank and self.rank_alpha <= ablation.alpha
        return ablation.case2 or smaller
