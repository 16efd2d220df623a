"""Parameter groups that are treated alike, as one while a run trains.

Of a ``paramwise_cfg`` mmengine makes a group for each parameter. Torch steps one group after
another, on a GPU by some ten launches each: more than the rest of a training step has.

A checkpoint has the groups that mmengine made, so that it is resumed whatever the settings of the
config are by then.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmengine.runner import Runner
from torch.optim import Optimizer

from .optimizer_parameters import named_wrappers

__all__ = ['join_groups', 'put_apart']

Group = dict[str, Any]
# What schedulers of mmengine keep of each group; of one more, the config's own settings, last.
PER_GROUP = ('base_values', '_last_value', 'min_values')
_PLAIN = int | float | str | None


class _Groups(NamedTuple):
    """The groups that an optimizer had.

    Attributes:
        home: For each, the one that it is in now.
        sizes: Parameters of each; those of a group that stayed come first there.
    """

    home: list[int]
    sizes: list[int]


_JOINED: weakref.WeakKeyDictionary[Optimizer, _Groups] = weakref.WeakKeyDictionary()


def join_groups(runner: Runner) -> None:
    """Joins the groups of a run's optimizers that have the same settings; once is enough.

    Args:
        runner: About to train: its optimizers and schedulers are built, and loaded where it goes
            on.
    """
    for name, wrapper in named_wrappers(runner.optim_wrapper).items():
        if wrapper.optimizer not in _JOINED:
            schedulers = [vars(one) for one in _of_optimizer(runner.param_schedulers, name)]
            _join(wrapper.optimizer, schedulers)


def _join(optimizer: Optimizer, schedulers: list[dict[str, Any]]) -> None:
    groups = optimizer.param_groups
    kept = [values for _, _, values in _per_group(schedulers, len(groups))]
    stay: list[int] = []
    home: list[int] = []
    for position, group in enumerate(groups):
        alike = (
            index
            for index, other in enumerate(stay)
            if _are_alike(groups[other], group) and all(v[other] == v[position] for v in kept)
        )
        home.append(next(alike, len(stay)))
        if home[-1] == len(stay):
            stay.append(position)
    if len(stay) == len(groups):
        return
    _JOINED[optimizer] = _Groups(home, [len(group['params']) for group in groups])
    for scheduler, key, values in _per_group(schedulers, len(groups)):
        scheduler[key] = [values[i] for i in stay] + values[len(groups) :]
    for position, group in enumerate(groups):
        if stay[home[position]] != position:
            groups[stay[home[position]]]['params'].extend(group['params'])
    groups[:] = [groups[i] for i in stay]


def put_apart(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Gives a checkpoint the groups that its optimizers had before they were joined.

    Args:
        runner: The run that writes it.
        checkpoint: With the states of its optimizers, and of its schedulers if it has any.
    """
    for name, wrapper in named_wrappers(runner.optim_wrapper).items():
        had = _JOINED.get(wrapper.optimizer)
        if had is None:
            continue
        state = checkpoint['optimizer'][name] if name else checkpoint['optimizer']
        joined, number = state['param_groups'], max(had.home) + 1
        sizes = [sum(s for i, s in zip(*had, strict=True) if i == home) for home in range(number)]
        if [len(group['params']) for group in joined[:number]] != sizes:
            continue  # somebody has changed them since
        schedulers = list(_of_optimizer(checkpoint.get('param_schedulers'), name))
        for scheduler, key, values in _per_group(schedulers, len(joined)):
            scheduler[key] = [values[i] for i in had.home] + values[number:]
        rest = [iter(group['params']) for group in joined]
        groups = [
            {**joined[i], 'params': list(itertools.islice(rest[i], size))}
            for i, size in zip(had.home, had.sizes, strict=True)
        ]
        groups += joined[number:]  # that came later
        order = {old: new for new, old in enumerate(i for group in groups for i in group['params'])}
        state['param_groups'] = [
            {**group, 'params': [order[i] for i in group['params']]} for group in groups
        ]
        state['state'] = {order.get(key, key): value for key, value in state['state'].items()}


def _of_optimizer(schedulers: Any, name: str) -> list[Any]:
    """The schedulers of one optimizer; those of several are given by their names."""
    if isinstance(schedulers, Mapping):
        schedulers = schedulers.get(name)
    return list(schedulers or ())


def _per_group(
    schedulers: list[dict[str, Any]], number: int
) -> Iterator[tuple[dict[str, Any], str, list[Any]]]:
    """What schedulers keep of so many groups: whose, under which name, and the values."""
    for scheduler in schedulers:
        for key in PER_GROUP:
            values = scheduler.get(key)
            if isinstance(values, list) and len(values) >= number:
                yield scheduler, key, values


def _are_alike(one: Group, other: Group) -> bool:
    return one.keys() == other.keys() and all(
        key == 'params' or _is_same(value, other[key]) for key, value in one.items()
    )


def _is_same(one: Any, other: Any) -> bool:
    """Two tensors (a rate that a graph reads) are two settings, whatever their values."""
    if isinstance(one, tuple | list) and type(one) is type(other):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, _PLAIN) and type(one) is type(other):
        return bool(one == other)
    return one is other
