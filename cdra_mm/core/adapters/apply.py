"""A plan meets a model: its adapters are built, put on, and the rest is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from cdra_mm.errors import PlanError

from ..model.digests import fingerprint_differences, list_differences
from ..model.old_fingerprints import is_old, old_fingerprint
from ..model.row_int8 import is_int8
from ..model.targets import Target, parameter_of, resolve
from ..planning.plan import Plan, SparseMatrix, Vector
from .adapted import (
    adapters,
    planned_parameters,
    remember_base,
    remember_plan,
    require_free_name,
)
from .adapter import Adapter, CallAdapter, find_kind
from .entries import Entries
from .layers import AdapterSlot, adapt_modules
from .low_rank import LowRank
from .masters import with_masters

__all__ = [
    'AdapterSlot',
    'apply_plan',
    'begin_at',
    'build_adapter',
    'check_base',
    'check_fits',
    'check_shapes',
    'freeze_rest',
    'planned_adapters',
]


def apply_plan(
    model: nn.Module,
    plan: Plan,
    *,
    keep_trainable: Iterable[str] = (),
    seed: int = 0,
    digests: Mapping[str, str] | None = None,
    start: Mapping[str, Tensor] = MappingProxyType({}),
) -> nn.Module:
    """Puts the plan's adapters into a model and freezes the rest, in place.

    Args:
        model: The model that the plan's names are relative to, with its
            pretrained weights loaded.
        plan: The plan; `plan_of` gives it back, on a base in half precision `with_masters`.
        keep_trainable: Paths of submodules that the plan does not cover and
            that stay as they are, for example the head of a whole classifier.
        seed: Seed of the factors' initial values; no global random state is used.
        digests: Table of the base weights (`digests_of`), where it is known already.
        start: First ``down`` of blocks by name, ``[r, |C|]``; the others are drawn by the seed.

    Raises:
        PlanError: If the model is adapted already, or the plan's names, shapes
            or base fingerprint do not fit it, or a start fits no block. The model is then
            unchanged.
    """
    check_fits(model, plan, digests)
    plan = with_masters(model, plan)
    paths = list(keep_trainable)
    kept = [_submodule(model, path) for path in paths]
    generator = torch.Generator().manual_seed(seed)
    slots = planned_adapters(model, plan)
    for _, _, adapter in slots:
        adapter.reset(generator)
    begin_at(dict(zip([block.name for block in plan.blocks], slots, strict=False)), start)
    adapt_modules(model, slots)  # nothing fails from here on
    freeze_rest(model, plan, kept)
    remember_base(model, paths, digests)
    return model


def begin_at(slots: Mapping[str, AdapterSlot], start: Mapping[str, Tensor]) -> None:
    """Gives the blocks their first ``down``."""
    for name, down in start.items():
        own = slots[name][2].get_parameter('down') if name in slots else None
        if own is None or own.shape != down.shape:
            raise PlanError(
                f'start: {name} has a first factor of {tuple(down.shape)}, expected '
                + (f'{tuple(own.shape)}' if own is not None else 'the name of a block of the plan')
            )
        with torch.no_grad():
            own.copy_(down)


def planned_adapters(model: nn.Module, plan: Plan) -> list[AdapterSlot]:
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
        rows, cols = (torch.tensor(index, device='cpu') for index in (block.rows, block.cols))
        numbers = dict(rank=block.rank, scale=block.scale, dropout=block.dropout)
        sizes = dict(rows=rows, cols=cols, **numbers)
        wanted.append((block.name, LowRank.kind, sizes))
    single: tuple[Vector | SparseMatrix, ...] = (*plan.vectors, *plan.sparse)
    for record in single:
        if record.indices is not None:
            index = torch.tensor(record.indices, device='cpu')
            wanted.append((record.name, Entries.kind, dict(index=index)))
    wanted += [(part.name, part.kind, part.sizes) for part in plan.parts]
    return [build_adapter(model, name, find_kind(kind), sizes) for name, kind, sizes in wanted]


def build_adapter(
    model: nn.Module, name: str, kind: type[Adapter], sizes: Mapping[str, Any]
) -> AdapterSlot:
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
    remember_plan(model, plan)


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
    require_free_name(model)
    check_shapes(model, plan)
    if plan.fingerprint:
        check_base(model, plan.fingerprint, digests)


def check_shapes(model: nn.Module, plan: Plan) -> None:
    """Checks that a model has what a plan names, in the shapes that it names.

    Raises:
        PlanError: See `apply_plan`.
    """
    for block in plan.blocks:
        _resolve_checked(model, block.name, block.shape)
    for vector in plan.vectors:
        _resolve_checked(model, vector.name, (vector.length,))
    for matrix in plan.sparse:
        _resolve_checked(model, matrix.name, matrix.shape)
    for part in plan.parts:
        _, _, adapter = build_adapter(model, part.name, find_kind(part.kind), part.sizes)
        count = sum(p.numel() for p in adapter.parameters())
        if count != part.num_params:
            raise PlanError(f'{part.name} has {count} parameters, the plan says {part.num_params}')
    for name, numel in plan.also_train.items():
        target = resolve(model, name)
        if target.part:
            raise PlanError(f'also_train names {name}, a part of a parameter: name {target.path}')
        shape = tuple(parameter_of(model, target).shape)
        if is_int8(parameter_of(model, target)):
            raise PlanError(
                f'also_train names {name}, which is kept in int8 and cannot be trained: apply the '
                'plan before quantize_base, or call restore_base first'
            )
        if torch.Size(shape).numel() != numel:
            raise PlanError(f'{name} has shape {shape}, the plan says {numel} entries')


def check_base(
    model: nn.Module,
    given: str,
    digests: Mapping[str, str] | None = None,
    names: Iterable[str] | None = None,
) -> None:
    """Refuses a model of other base weights than those of a fingerprint, by their names.

    Args:
        model: The model.
        given: A `fingerprint` of it.
        digests: Table of the model's weights, where it is known already.
        names: What the fingerprint covers, where that is not all that competes.

    Raises:
        PlanError: If any is another.
    """
    if is_old(given):
        here = old_fingerprint(given, model, digests)
        found = f'fingerprint {given[:12]}, this model has {here[:12]}' if here != given else ''
    else:
        differ = fingerprint_differences(given, model, digests, names)
        found = list_differences(differ) if differ else ''
    if found:
        raise PlanError(
            f'the plan was made for other base weights ({found}): load the weights it was made '
            'for, or make a new plan'
        )


def _resolve_checked(model: nn.Module, name: str, shape: tuple[int, ...]) -> Target:
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
