"""CDRA-SPT: compact dynamic-rank adaptation of the sensitive entries (CVPR 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from cdra_mm.core import ConfigError, Plan, PlanError, make_plan
from cdra_mm.core.planning import check_settings

__all__ = ['CDRA']


@dataclass(frozen=True)
class CDRA:
    """CDRA-SPT (steps 1 to 3, Eqs. 3 to 7).

    At most one of the four budgets may be given; with none it is
    ``budget_percent=0.5``.

    Args:
        gamma: Fraction of the competing entries to select.
        num_sensitive: Number of entries to select.
        budget_params: Trainable backbone parameters, a count.
        budget_percent: The same as a percentage of the backbone's parameters.
        rank_rule: ``'eq7'``, ``'count'`` or a fixed rank.
        min_rank: Rank of a block whose rule gives less; 0 freezes it.
        beta: A vector is trained whole from ``length / beta`` selected entries on.
    """

    name: ClassVar[str] = 'cdra'
    needs_scores: ClassVar[bool] = True

    gamma: float | None = None
    num_sensitive: int | None = None
    budget_params: int | None = None
    budget_percent: float | None = None
    rank_rule: str | int = 'eq7'
    min_rank: int = 0
    beta: float = 5

    def __post_init__(self) -> None:
        budgets = ('gamma', 'num_sensitive', 'budget_params', 'budget_percent')
        given = [name for name in budgets if getattr(self, name) is not None]
        if len(given) > 1:
            listed = ', '.join(f'{name}={getattr(self, name)}' for name in given)
            raise ConfigError(f'{listed}: give only one of {", ".join(budgets)}')
        if not given:
            object.__setattr__(self, 'budget_percent', 0.5)
        percent = self.budget_percent
        if percent is not None and not 0 < percent <= 100:
            raise ConfigError(f'budget_percent={percent}: expected a percentage in (0, 100]')
        if self.gamma is not None and not 0 < self.gamma <= 1:
            raise ConfigError(f'gamma={self.gamma}: expected a fraction in (0, 1]')
        for name in ('num_sensitive', 'budget_params'):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f'{name}={value!r}: expected a count of at least 1')
        try:
            check_settings(self.rank_rule, self.min_rank, self.beta)
        except PlanError as error:
            raise ConfigError(str(error)) from None

    def plan(
        self,
        backbone: nn.Module,
        scores: Mapping[str, Tensor] | None,
        *,
        also_train: Mapping[str, int],
        settings: Mapping[str, Any],
        fingerprint: str,
    ) -> Plan | None:
        """See `Method.plan`."""
        assert scores is not None
        options = asdict(self)
        percent = options.pop('budget_percent')
        if percent is not None:
            total = sum(parameter.numel() for parameter in backbone.parameters())
            options['budget_params'] = int(total * percent / 100)
        return make_plan(
            scores,
            **options,
            also_train=also_train,
            settings={**settings, **asdict(self)},
            fingerprint=fingerprint,
        )
