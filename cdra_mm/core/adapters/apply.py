"""A plan meets a model: apply, merge, unmerge, remove."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn

from cdra_mm.errors import PlanError

from ..model.digests import forget_base, remember_base, same_scheme
from ..model.targets import Target, parameter_of, resolve
from ..planning.plan import Plan, SparseMatrix, Vector
from .adapter import Adapter, CallAdapter, find_kind
from .entries import Entries
from .layers import AdapterSet, adapt_module
from .low_rank import LowRank

__all__ = [
    'adapters',
    'apply_plan',
    'build_adapter',
    'check_fits',
    'count_parameters',
    'freeze_rest',
    'merge_adapters',
    'plan_of',
    'planned_adapters',
    'planned_parameters',
    'remove_adapters',
    'trained_whole',
    'unmerge_adapters',
]

# Path of a module, suffix in its `AdapterSet`, adapter.
Place = tuple[str, str, Adapter]


def apply_plan(
    model: nn.Module,
    plan: Plan,
    *,
    keep_trainable: Iterable[str] = (),
    seed: int = 0,
    digests: Mapping[str, str] | None = None,
) -> nn.Module:
    """Puts the plan's adapters into a model and freezes the rest, in place.

    Args:
        model: The model that the plan's names are relative to, with its
            pretrained weights loaded.
        plan: The plan.
        keep_trainable: Paths of submodules that the plan does not cover and
            that stay as they are, for example the head of a whole classifier.
        seed: Seed of the factors' initial values; no global random state is used.
        digests: Table of the base weights (`digests_of`), where it is known already.

    Returns:
        The model.

    Raises:
        PlanError: If the model is adapted already, or the plan's names, shapes
            or base fingerprint do not fit it. The model is then unchanged.
    """
    check_fits(model, plan, digests)
    paths = list(keep_trainable)
    kept = [_submodule(model, path) for path in paths]
    generator = torch.Generator().manual_seed(seed)
    places = planned_adapters(model, plan)
    for _, _, adapter in places:
        adapter.reset(generator)
    for path, suffix, adapter in places:  # nothing fails from here on
        adapt_module(model, path, suffix, adapter)
    freeze_rest(model, plan, kept)
    remember_base(model, paths)
    return model


def planned_adapters(model: nn.Module, plan: Plan) -> list[Place]:
    """The adapters that a plan asks for, built but not yet put on.

    Args:
        model: The plain model.
        plan: The plan; see `check_fits`.

    Returns:
        Path of the module, suffix in its `AdapterSet` and adapter of each.

    Raises:
        PlanError: If one cannot be built on this model.
    """
    wanted: list[tuple[str, str, Mapping[str, Any]]] = []
    for block in plan.blocks:
        rows, cols = torch.tensor(block.rows), torch.tensor(block.cols)
        sizes = dict(rows=rows, cols=cols, rank=block.rank, scale=block.scale)
        wanted.append((block.name, LowRank.kind, sizes))
    single: tuple[Vector | SparseMatrix, ...] = (*plan.vectors, *plan.sparse)
    for record in single:
        if record.indices is not None:
            wanted.append((record.name, Entries.kind, dict(index=torch.tensor(record.indices))))
    wanted += [(part.name, part.kind, part.sizes) for part in plan.parts]
    return [build_adapter(model, name, find_kind(kind), sizes) for name, kind, sizes in wanted]


def build_adapter(
    model: nn.Module, name: str, kind: type[Adapter], sizes: Mapping[str, Any]
) -> Place:
    """One adapter, built but not yet put on; see `planned_adapters`.

    Raises:
        PlanError: If the model has no such place, or the kind does not fit it.
    """
    try:
        if issubclass(kind, CallAdapter):
            path, _, suffix = name.rpartition('.')
            if suffix != kind.kind:
                raise ValueError(f'expected a name that ends with {kind.kind}')
            module = model.get_submodule(path)
            if 'forward' in vars(module):  # the adapter would not be called
                raise ValueError(
                    f'the forward of this {type(module).__name__} was replaced '
                    '(activation_checkpointing of the config?): take the module out of that list'
                )
            return path, suffix, cast(Any, kind)(module, **sizes)
        target = resolve(model, name)
        build = cast(Any, kind)
        return target.module, target.suffix, build(target, parameter_of(model, target), **sizes)
    except PlanError:
        raise
    except Exception as error:  # a plan may hold any sizes, also such as no memory holds
        what = str(error).partition('\n')[0] or type(error).__name__
        raise PlanError(f'{name} ({kind.kind}) cannot be put on this model: {what}') from error


def freeze_rest(model: nn.Module, plan: Plan, kept: Iterable[nn.Module] = ()) -> None:
    """Makes exactly what the plan trains trainable, on a model that has its adapters.

    Args:
        model: The adapted model; `plan_of` gives the plan from now on.
        plan: Its plan.
        kept: Submodules that stay as they are.
    """
    trained = {id(parameter) for parameter in planned_parameters(model, plan).values()}
    untouched = {id(p) for module in kept for p in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in untouched:
            parameter.requires_grad_(id(parameter) in trained)
    present = adapters(model)
    for block in plan.blocks:
        cast(LowRank, present[block.name]).dropout = block.dropout
    model._cdra_plan = plan  # type: ignore[assignment]


def planned_parameters(model: nn.Module, plan: Plan) -> dict[str, nn.Parameter]:
    """What a plan trains of a model that has its adapters, by name."""
    trained = {id(parameter_of(model, resolve(model, name))) for name in trained_whole(plan)}
    trained |= {id(p) for adapter in adapters(model).values() for p in adapter.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) in trained}


def trained_whole(plan: Plan) -> list[str]:
    """Names of the model's own parameters that a plan trains whole."""
    whole = [vector.name for vector in plan.vectors if vector.indices is None]
    return [*whole, *plan.also_train]


def check_fits(model: nn.Module, plan: Plan, digests: Mapping[str, str] | None = None) -> None:
    """Checks that a plan was made for this model and these base weights.

    Args:
        model: A plain model.
        plan: The plan.
        digests: Table of the model's weights, where it is known already.

    Raises:
        PlanError: See `apply_plan`.
    """
    if adapters(model):
        raise PlanError(
            f'{type(model).__name__} is adapted already: merge or remove its adapters first'
        )
    for block in plan.blocks:
        _fitting(model, block.name, block.shape)
    for vector in plan.vectors:
        _fitting(model, vector.name, (vector.length,))
    for matrix in plan.sparse:
        _fitting(model, matrix.name, matrix.shape)
    for part in plan.parts:
        _, _, adapter = build_adapter(model, part.name, find_kind(part.kind), part.sizes)
        count = sum(p.numel() for p in adapter.parameters())
        if count != part.num_params:
            raise PlanError(f'{part.name} has {count} parameters, the plan says {part.num_params}')
    for name, numel in plan.also_train.items():
        shape = tuple(parameter_of(model, resolve(model, name)).shape)
        if torch.Size(shape).numel() != numel:
            raise PlanError(f'{name} has shape {shape}, the plan says {numel} entries')
    here = same_scheme(plan.fingerprint, model, digests) if plan.fingerprint else ''
    if here != plan.fingerprint:
        raise PlanError(
            'the plan was made for other base weights (fingerprint '
            f'{plan.fingerprint[:12]}, this model has {here[:12]}): load the weights '
            'it was made for, or make a new plan'
        )


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
    """Puts every adapter into its plain weights, in place; merged ones are skipped.

    A merged model computes exactly what a plain one computes with the merged
    weights, and its state dict holds no adapter.

    Raises:
        PlanError: If one is of a kind that does not merge; the model is then unchanged.
    """
    fixed = [name for name, adapter in adapters(model).items() if not adapter.can_merge]
    if fixed:
        raise PlanError(
            f'{len(fixed)} adapters do not merge into plain weights (the first is {fixed[0]}): '
            'the model needs them, and this package, for inference'
        )
    for module, adapter in _carried(model):
        if not adapter.merged:
            adapter.merge_(module)


def unmerge_adapters(model: nn.Module) -> None:
    """Takes merged adapters out of the base weights again.

    The base comes back up to one rounding of its type per merge: within
    ``2 * eps * max(|W|, |W'|)`` of each entry.
    """
    for module, adapter in _carried(model):
        if adapter.merged:
            adapter.merge_(module, sign=-1)


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
    forget_base(model)


def _carried(model: nn.Module) -> Iterator[tuple[nn.Module, Adapter]]:
    """Every adapted module with each of its adapters."""
    for module in model.modules():
        if hasattr(type(module), 'base_class'):
            for adapter in cast(AdapterSet, module.cdra).children():
                yield module, cast(Adapter, adapter)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and all base parameters: ``(trainable, total without adapters)``."""
    own = {id(p) for adapter in adapters(model).values() for p in adapter.parameters()}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters() if id(p) not in own)


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
