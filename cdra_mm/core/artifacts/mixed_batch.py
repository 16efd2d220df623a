"""A batch whose samples belong to different tasks, in one pass through the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from cdra_mm.errors import PlanError

from ..adapters.adapter import Adapter, ParameterAdapter
from ..adapters.fitting import Place, places_of
from ..adapters.layers import PLAIN_LINEAR
from ..adapters.low_rank import LowRank
from ..adapters.mixed_weights import (
    FoldedAttention,
    Group,
    MixedWeight,
    Update,
    Updates,
    refuse_calls,
    update_of,
)
from ..adapters.stand_in import standing_in
from ..model.targets import resolve
from .sample_groups import has_samples

__all__ = ['MixedTask', 'changes_of', 'run_mixed']


@dataclass(frozen=True)
class MixedTask:
    """What a task changes of the base.

    Attributes:
        name: Its name.
        adapters: Its adapters by target name.
        whole: Values of the base's own tensors that it replaces, by name.
    """

    name: str
    adapters: Mapping[str, Adapter]
    whole: Mapping[str, Tensor]


@torch.no_grad()
def run_mixed(
    model: nn.Module,
    run: Callable[[Any], Any],
    images: Any,
    tasks: Sequence[tuple[Group, MixedTask]],
) -> Any:
    """What a model gives for samples of several tasks, each with the adapters of its own.

    Args:
        model: The plain base.
        run: Calls it.
        images: What it is called with, tensors ``[B, ...]``; the samples of a task are together.
        tasks: The tasks, each with its samples.

    Returns:
        What `run` returns, every tensor ``[B, ...]``.

    Raises:
        PlanError: If an adapter cannot be mixed, or the model does with a batch what cannot be
            done to each sample by itself.
    """
    for _, task in tasks:
        refuse_calls(task.name, task.adapters)
    places = places_of(model)
    products, values = changes_of(model, places, tasks)
    counts = [group.stop - group.start for group, _ in tasks]
    every = torch.arange(len(tasks), device='cpu')
    which = every.repeat_interleave(torch.tensor(counts, device='cpu'))
    each = {name: _of_samples(value, counts) for name, value in values.items()}

    given, form = tree_flatten(images)
    # What of the outputs is no tensor, None in the place of one, and their form.
    kept: list[tuple[list[tuple[Any] | None], TreeSpec]] = []

    def one(which: Tensor, sample: list[Tensor], own: dict[str, Tensor]) -> list[Tensor]:
        parts = iter(sample)
        image = [next(parts).unsqueeze(0) if has_samples(value) else value for value in given]
        weights = {
            name: MixedWeight(name, _at(places, name), updates, which)
            for name, updates in products.items()
        }
        with standing_in(model, places, {**own, **weights}):
            found, found_form = tree_flatten(run(tree_unflatten(image, form)))
        kept.append(([None if isinstance(v, Tensor) else (v,) for v in found], found_form))
        return [value for value in found if isinstance(value, Tensor)]

    try:
        with FoldedAttention():
            samples = [value for value in given if has_samples(value)]
            made = torch.vmap(one, randomness='different')(which, samples, each)
    except RuntimeError as error:
        first = str(error).partition('\n')[0]
        if not first.startswith('vmap:'):
            raise
        raise PlanError(
            f'{type(model).__name__} does with a batch what cannot be done for each sample by '
            f'itself ({first[:200]}): call the tasks one after another with use()'
        ) from error
    rest, found_form = kept[-1]
    tensors = iter(tensor.flatten(0, 1) if tensor.dim() > 1 else tensor for tensor in made)
    found = [next(tensors) if value is None else value[0] for value in rest]
    return tree_unflatten(found, found_form)


def _at(places: Mapping[str, Place], name: str) -> Tensor:
    held, key = places[name]
    tensor: Tensor = held[key]
    return tensor


def changes_of(
    model: nn.Module,
    places: Mapping[str, Place],
    tasks: Sequence[tuple[Group, MixedTask]],
) -> tuple[dict[str, Updates], dict[str, list[Tensor]]]:
    """What tasks change of a base.

    Args:
        model: The plain base.
        places: Where its tensors are.
        tasks: The tasks, each with its samples.

    Returns:
        Updates of the weights of products, and the values of all else in each task, by name.
    """
    paths: list[dict[str, list[ParameterAdapter]]] = []
    for _, task in tasks:
        own: dict[str, list[ParameterAdapter]] = {}
        for name, adapter in task.adapters.items():
            if isinstance(adapter, ParameterAdapter):
                own.setdefault(resolve(model, name).path, []).append(adapter)
        paths.append(own)
    linear = _products(model)
    changed = {name for own in paths for name in own}
    changed |= {name for _, task in tasks for name in task.whole}
    low_rank = {
        name
        for own in paths
        for name, adapters in own.items()
        if any(isinstance(adapter, LowRank) for adapter in adapters)
    }
    products: dict[str, Updates] = {}
    values: dict[str, list[Tensor]] = {}
    for name in sorted(changed):
        base = _at(places, name)
        if name in low_rank or id(base) in linear:
            updates: list[tuple[Group, Update]] = []
            for (group, task), own in zip(tasks, paths, strict=True):
                if name in own or name in task.whole:
                    update = update_of(own.get(name, ()), base, _like(task.whole.get(name), base))
                    updates.append((group, update))
            products[name] = Updates(updates)
            continue
        values[name] = []
        for (_, task), own in zip(tasks, paths, strict=True):
            value = _like(task.whole.get(name), base)
            value = base if value is None else value
            for adapter in own.get(name, ()):
                value = adapter.moved(base.device).added_to(value)
            values[name].append(value)
    return products, values


def _products(model: nn.Module) -> set[int]:
    """The weights of layers that are nothing but ``F.linear``."""
    found = set()
    for module in model.modules():
        if type(module) in PLAIN_LINEAR:
            found.add(id(module._parameters['weight']))
        elif type(module) is nn.MultiheadAttention:
            found.add(id(module._parameters['in_proj_weight']))
    return found


def _like(value: Tensor | None, base: Tensor) -> Tensor | None:
    return None if value is None else value.to(base.device, base.dtype)


def _of_samples(values: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """The value of every sample, ``[B, ...]``."""
    parts = [value.expand(count, *value.shape) for value, count in zip(values, counts, strict=True)]
    return torch.cat(parts)
