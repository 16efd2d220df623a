"""Parameter groups that are treated alike, as one.

Of a ``paramwise_cfg`` mmengine makes a group for each parameter. Torch steps one group after
another, on a GPU by some ten launches each: as many as the rest of a training step has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.optim import OptimWrapper

__all__ = ['join_groups', 'join_old_groups']

Group = dict[str, Any]
# What schedulers of mmengine keep of each group.
PER_GROUP = {'base_values', '_last_value', 'min_values'}
_PLAIN = int | float | str | tuple | list | None


def join_groups(groups: list[Group]) -> list[int]:
    """Puts the parameters of each group into the first that has the same settings, in place.

    Args:
        groups: Of an optimizer, or of its state dict.

    Returns:
        Where those that stay were among the given.

    Example:
        >>> groups = [dict(params=[0], lr=1), dict(params=[1], lr=2), dict(params=[2], lr=1)]
        >>> join_groups(groups), groups
        ([0, 1], [{'params': [0, 2], 'lr': 1}, {'params': [1], 'lr': 2}])
    """
    stay: list[int] = []
    for position, group in enumerate(groups):
        home = next((groups[i] for i in stay if _are_alike(groups[i], group)), None)
        if home is None:
            stay.append(position)
        else:
            home['params'].extend(group['params'])
    groups[:] = [groups[i] for i in stay]
    return stay


def join_old_groups(checkpoint: Mapping[str, Any], wrappers: Mapping[str, OptimWrapper]) -> None:
    """Joins the groups of a checkpoint of before they were joined, in place.

    What schedulers keep of each group goes with them.

    Args:
        checkpoint: With optimizers and schedulers, checked to be such.
        wrappers: The run's, by name; a single one has none.
    """
    for name, wrapper in wrappers.items():
        state = checkpoint['optimizer'][name] if name else checkpoint['optimizer']
        groups, number = state['param_groups'], len(state['param_groups'])
        if number <= len(wrapper.optimizer.param_groups):
            continue
        stay = join_groups(groups)
        schedulers: Any = checkpoint.get('param_schedulers') or []
        for scheduler in schedulers[name] if name else schedulers:
            for key in PER_GROUP & scheduler.keys():
                values = scheduler[key]  # one more than groups where mmengine adds the config's
                if isinstance(values, list) and len(values) >= number:
                    scheduler[key] = [values[i] for i in stay] + values[number:]


def _are_alike(one: Group, other: Group) -> bool:
    return one.keys() == other.keys() and all(
        key == 'params' or _is_same(value, other[key]) for key, value in one.items()
    )


def _is_same(one: Any, other: Any) -> bool:
    """Two tensors (a rate that a graph reads) are two settings, whatever their values."""
    if isinstance(one, _PLAIN) and type(one) is type(other):
        return bool(one == other)
    return one is other
