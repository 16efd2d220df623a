"""How many parameters to train: one of four settings, the same for every method that selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from cdra_mm.errors import ConfigError
from cdra_mm.settings import count, setting

from .base import Method

__all__ = ['Selecting']

BUDGETS = ('gamma', 'num_sensitive', 'budget_params', 'budget_percent')
DEFAULT_PERCENT = 0.5


@dataclass(frozen=True)
class Selecting(Method):
    """A method that selects by scores.

    At most one of the four budgets may be given; with none it is ``budget_percent=0.5``.

    Args:
        gamma: Fraction of the competing entries to select.
        num_sensitive: Number of entries to select.
        budget_params: Trainable backbone parameters, a count.
        budget_percent: The same as a percentage of the backbone's parameters.
    """

    needs_scores: ClassVar[bool] = True

    gamma: float | None = setting(None, above=0, maximum=1, what='a fraction')
    num_sensitive: int | None = count(None)
    budget_params: int | None = count(None)
    budget_percent: float | None = setting(None, above=0, maximum=100, what='a percentage')

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            listed = ', '.join(f'{name}={getattr(self, name)}' for name in given)
            raise ConfigError(f'{listed}: give only one of {", ".join(BUDGETS)}')
        if not given:
            object.__setattr__(self, 'budget_percent', DEFAULT_PERCENT)

    def budget_on(self, backbone: nn.Module, beside: int = 0) -> dict[str, Any]:
        """The budget on a backbone: ``gamma``, ``num_sensitive`` and ``budget_params``.

        Args:
            backbone: What a percentage is of.
            beside: Trained parameters that stand outside of a budget in parameters or percent.

        Returns:
            The three by name, all None but one; a percentage is a count by now.
        """
        budget = {name: getattr(self, name) for name in BUDGETS[:3]}
        if self.budget_percent is not None:
            total = sum(parameter.numel() for parameter in backbone.parameters())
            budget['budget_params'] = int(total * self.budget_percent / 100)
        if budget['budget_params'] is not None:
            budget['budget_params'] += beside
        return budget
