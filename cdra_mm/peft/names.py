"""The names of adapters that a user gives, and what is summed under one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from cdra_mm.core.model.child_names import not_a_child_name
from cdra_mm.errors import ConfigError
from cdra_mm.spelling import did_you_mean

__all__ = ['check_name', 'check_sum', 'require_names']


def check_name(name: Any) -> None:
    """Refuses a name under which torch keeps no module.

    Raises:
        ConfigError: If it is one.
    """
    fault = not_a_child_name(name)
    if fault:
        raise ConfigError(f'adapter_name={name!r} {fault}')


def require_names(known: Mapping[str, Any], names: Sequence[str] | None) -> None:
    """Refuses names of adapters that are not there; peft would leave them out without a word.

    Args:
        known: The adapters that are there.
        names: Those asked for.

    Raises:
        ConfigError: Names the first.
    """
    if isinstance(names, str):
        raise ConfigError(f'adapter_names={names!r}: expected a list of names')
    for name in names or ():
        if name not in known:
            raise ConfigError(
                f'there is no adapter {name!r}{did_you_mean(name, known)}: those added are '
                f'{", ".join(map(repr, known))}'
            )


def check_sum(
    known: Mapping[str, Any],
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str,
) -> None:
    """Refuses a weighted sum that is not defined; see ``CdraModel.add_weighted_adapter``.

    Raises:
        ConfigError: Says why.
    """
    if combination_type != 'cat':
        raise ConfigError(
            f"combination_type={combination_type!r}: expected 'cat', the exact sum; blocks of "
            'other rows and columns have no other'
        )
    unknown = [name for name in adapters if name not in known]
    if unknown or not adapters:
        raise ConfigError(
            f'adapters={list(adapters)!r}: expected some of {", ".join(map(repr, known))}'
        )
    if len(weights) != len(adapters):
        raise ConfigError(f'{len(weights)} weights for {len(adapters)} adapters: give one for each')
    for weight in weights:
        if not isinstance(weight, Real) or not math.isfinite(weight):
            raise ConfigError(f'weights={list(weights)!r}: expected a finite number for each')
    if adapter_name in known:
        raise ConfigError(f'there is an adapter {adapter_name!r} already: use another name')
    heads = [name for name in adapters if known[name].modules_to_save]
    if len(heads) > 1:
        raise ConfigError(
            f'the adapters {heads[0]!r} and {heads[1]!r} bring modules_to_save along, of which '
            'there is no weighted sum'
        )
