"""A plan meets a model: apply, merge, unmerge, remove."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from .errors import PlanError
from .fingerprints import fingerprint
from .layers import Adapter, AdapterSet, Entries, LowRank, adapt_module
from .plan import Plan
from .targets import Target, parameter_of, resolve

__all__ = [
    'adapters',
    'apply_plan',
    'check_fits',
    'count_parameters',
    'freeze_rest',
    'merge_adapters',
    'plan_of',
    'remove_adapters',
    'unmerge_adapters',
]


def apply_plan(
    model: nn.Module, plan: Plan, *, keep_trainable: Iterable[str] = (), seed: int = 0
) -> nn.Module:
    """Puts the plan's adapters into a model and freezes the rest, in place.

    Args:
        model: The model that the plan's names are relative to, with its
            pretrained weights loaded.
        plan: The plan.
        keep_trainable: Paths of submodules that the plan does not cover and
            that stay as they are, for example the head of a whole classifier.
        seed: Seed of the factors' initial values; no global random state is used.

    Returns:
        The model.

    Raises:
        PlanError: If the model is adapted already, or the plan's names, shapes
            or base fingerprint do not fit it. The model is then unchanged.
    """
    targets = check_fits(model, plan)
    kept = [_submodule(model, path) for path in keep_trainable]
    generator = torch.Generator().manual_seed(seed)
    for block in plan.blocks:
        target = targets[block.name]
        rows, cols = torch.tensor(block.rows), torch.tensor(block.cols)
        low_rank = add_low_rank(model, target, rows, cols, block.rank)
        low_rank.reset(generator)
    for vector in plan.vectors:
        if vector.indices is not None:
            add_entries(model, targets[vector.name], torch.tensor(vector.indices))
    freeze_rest(model, plan, kept)
    return model


def freeze_rest(model: nn.Module, plan: Plan, kept: Iterable[nn.Module] = ()) -> None:
    """Makes exactly what the plan trains trainable, on a model that has its adapters.

    Args:
        model: The adapted model; `plan_of` gives the plan from now on.
        plan: Its plan.
        kept: Submodules that stay as they are.
    """
    whole = [vector.name for vector in plan.vectors if vector.indices is None]
    trained = {id(parameter_of(model, resolve(model, name))) for name in (*whole, *plan.also_train)}
    trained |= {id(p) for adapter in adapters(model).values() for p in adapter.parameters()}
    untouched = {id(p) for module in kept for p in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in untouched:
            parameter.requires_grad_(id(parameter) in trained)
    model._cdra_plan = plan  # type: ignore[assignment]


def check_fits(model: nn.Module, plan: Plan) -> dict[str, Target]:
    """Checks that a plan was made for this model and these base weights.

    Args:
        model: A plain model.
        plan: The plan.

    Returns:
        The targets of its blocks and vectors.

    Raises:
        PlanError: See `apply_plan`.
    """
    if adapters(model):
        raise PlanError(
            f'{type(model).__name__} is adapted already: merge or remove its adapters first'
        )
    targets = {block.name: _fitting(model, block.name, block.shape) for block in plan.blocks}
    for vector in plan.vectors:
        targets[vector.name] = _fitting(model, vector.name, (vector.length,))
    for name, numel in plan.also_train.items():
        shape = tuple(parameter_of(model, resolve(model, name)).shape)
        if torch.Size(shape).numel() != numel:
            raise PlanError(f'{name} has shape {shape}, the plan says {numel} entries')
    if plan.fingerprint and fingerprint(model) != plan.fingerprint:
        raise PlanError(
            'the plan was made for other base weights (fingerprint '
            f'{plan.fingerprint[:12]}, this model has {fingerprint(model)[:12]}): load the weights '
            'it was made for, or make a new plan'
        )
    return targets


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that `apply_plan` put into the model, or None."""
    return cast('Plan | None', model.__dict__.get('_cdra_plan'))


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The adapters of a model by target name, in module order."""
    return {
        (f'{path}.' if path else '') + suffix: cast(Adapter, adapter)
        for path, module in model.named_modules()
        if hasattr(type(module), 'base_class')
        for suffix, adapter in cast(AdapterSet, module.cdra).named_children()
    }


def merge_adapters(model: nn.Module) -> None:
    """Adds every adapter to its base weight, in place; merged ones are skipped.

    A merged model computes exactly what a plain one computes with the merged
    weights, and its state dict holds no adapter.
    """
    for name, adapter in adapters(model).items():
        if not adapter.merged:
            adapter.merge_(parameter_of(model, resolve(model, name)))


def unmerge_adapters(model: nn.Module) -> None:
    """Takes merged adapters out of the base weights again.

    The base comes back up to one rounding of its type per merge: within
    ``2 * eps * max(|W|, |W'|)`` of each entry.
    """
    for name, adapter in adapters(model).items():
        if adapter.merged:
            adapter.merge_(parameter_of(model, resolve(model, name)), sign=-1)


def remove_adapters(model: nn.Module, *, discard: bool = False) -> None:
    """Gives every module its plain class back and drops the adapters.

    Args:
        model: An adapted model.
        discard: Drop adapters that are not merged, and with them what they learnt.

    Raises:
        PlanError: If adapters are not merged and `discard` is False.
    """
    unmerged = [name for name, adapter in adapters(model).items() if not adapter.merged]
    if unmerged and not discard:
        raise PlanError(
            f'{len(unmerged)} adapters are not merged (the first is {unmerged[0]}): call '
            'merge_adapters first, or pass discard=True to lose them'
        )
    for module in list(model.modules()):
        if hasattr(type(module), 'base_class'):
            base = cast('type[nn.Module]', type(module).base_class)  # type: ignore[attr-defined]
            del module.cdra
            module.__class__ = base
    model.__dict__.pop('_cdra_plan', None)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and all base parameters: ``(trainable, total without adapters)``."""
    own = {id(p) for adapter in adapters(model).values() for p in adapter.parameters()}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters() if id(p) not in own)


def add_low_rank(
    model: nn.Module, target: Target, rows: Tensor, cols: Tensor, rank: int
) -> LowRank:
    """Puts a low-rank adapter on a target."""
    weight = parameter_of(model, target)
    low_rank = LowRank(target.parameter, target.start, rows, cols, rank, weight)
    adapt_module(model.get_submodule(target.module), target.suffix, low_rank)
    return low_rank


def add_entries(model: nn.Module, target: Target, index: Tensor) -> None:
    """Puts single trained entries on a target."""
    entries = Entries(target.parameter, index, parameter_of(model, target))
    adapt_module(model.get_submodule(target.module), target.suffix, entries)


def _fitting(model: nn.Module, name: str, shape: tuple[int, ...]) -> Target:
    target = resolve(model, name)
    if target.shape != tuple(shape):
        raise PlanError(
            f'{name} has shape {target.shape}, the plan was made for {tuple(shape)}: it belongs '
            'to another architecture'
        )
    return target


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise PlanError(
            f'keep_trainable: {type(model).__name__} has no submodule {path!r}'
        ) from None
