"""Which samples of a batch belong to which task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from cdra_mm.errors import PlanError

from ..adapters.mixed_weights import Group

__all__ = ['grouped', 'has_samples', 'map_samples']


def has_samples(value: Any) -> bool:
    """Whether something that a model is given or gives is a tensor ``[B, ...]``.

    Whatever else there is (a flag, a number, None) is the same for all samples.
    """
    return isinstance(value, Tensor) and value.dim() > 0


def map_samples(change: Callable[[Tensor], Any], values: Any) -> Any:
    """Changes every tensor ``[B, ...]`` of nested values, and leaves the rest."""
    return tree_map(lambda value: change(value) if has_samples(value) else value, values)


def grouped(images: Any, tasks: Sequence[str] | Iterable[str]) -> tuple[Tensor, dict[str, Group]]:
    """The order in which the samples of a task follow each other, and where each task begins.

    Args:
        images: What a model is called with, tensors ``[B, ...]``.
        tasks: The task of every sample.

    Returns:
        The order ``[B]``, and the groups by task; both empty for a batch of no samples.

    Raises:
        PlanError: If there is not one task for each sample.
    """
    if isinstance(tasks, str) or not isinstance(tasks, Iterable):
        raise PlanError(
            f'tasks={tasks!r}: expected the task of every sample; for one task call use()'
        )
    given = list(tasks)
    counts = {len(value) for value in tree_leaves(images) if has_samples(value)}
    if counts != {len(given)}:
        raise PlanError(
            f'{len(given)} tasks for {", ".join(map(str, sorted(counts))) or "no"} samples: '
            'expected the task of every sample'
        )
    groups: dict[str, Group] = {}
    order: list[int] = []
    for name in dict.fromkeys(given):
        own = [place for place, other in enumerate(given) if other == name]
        groups[name] = Group(len(order), len(order) + len(own))
        order += own
    return torch.tensor(order, dtype=torch.long, device='cpu'), groups
