"""How many parameters to train: one of four settings, the same for every method that selects."""

from __future__ import annotations

from typing import Any

from torch import nn

from cdra_mm.errors import ConfigError

from .settings import is_number

__all__ = ['BUDGETS', 'DEFAULT_PERCENT', 'check_budget', 'resolved_budget']

# gamma           fraction of the competing entries to select
# num_sensitive   number of entries to select
# budget_params   trainable backbone parameters, a count
# budget_percent  the same as a percentage of the backbone's parameters
BUDGETS = ('gamma', 'num_sensitive', 'budget_params', 'budget_percent')
DEFAULT_PERCENT = 0.5


def check_budget(method: Any) -> None:
    """Checks the budget of a frozen dataclass; sets the default percentage where there is none.

    Args:
        method: Has the fields of `BUDGETS`, None where not given.

    Raises:
        ConfigError: If more than one is given, or one is out of range.
    """
    given = [name for name in BUDGETS if getattr(method, name) is not None]
    if len(given) > 1:
        listed = ', '.join(f'{name}={getattr(method, name)}' for name in given)
        raise ConfigError(f'{listed}: give only one of {", ".join(BUDGETS)}')
    if not given:
        object.__setattr__(method, 'budget_percent', DEFAULT_PERCENT)
    percent = method.budget_percent
    if percent is not None and not (is_number(percent) and 0 < percent <= 100):
        raise ConfigError(f'budget_percent={percent!r}: expected a percentage in (0, 100]')
    gamma = method.gamma
    if gamma is not None and not (is_number(gamma) and 0 < gamma <= 1):
        raise ConfigError(f'gamma={gamma!r}: expected a fraction in (0, 1]')
    for name in ('num_sensitive', 'budget_params'):
        value = getattr(method, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError(f'{name}={value!r}: expected a count of at least 1')
        if value is not None and value < 1:
            raise ConfigError(f'{name}={value!r}: expected a count of at least 1')


def resolved_budget(method: Any, backbone: nn.Module, beside: int = 0) -> dict[str, Any]:
    """The budget of a method on a backbone: ``gamma``, ``num_sensitive`` and ``budget_params``.

    Args:
        method: See `check_budget`.
        backbone: What a percentage is of.
        beside: Trained parameters that stand outside of a budget in parameters or percent.

    Returns:
        The three by name, all None but one; a percentage is a count by now.
    """
    budget = {name: getattr(method, name) for name in BUDGETS[:3]}
    if method.budget_percent is not None:
        total = sum(parameter.numel() for parameter in backbone.parameters())
        budget['budget_params'] = int(total * method.budget_percent / 100)
    if budget['budget_params'] is not None:
        budget['budget_params'] += beside
    return budget
