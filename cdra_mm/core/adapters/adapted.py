"""What an adapted model knows of itself: its adapters, its plan, its base, and what it trains.

Its state dict tells it too: ``cdra_plan``, a small tensor, is the plan by which the adapters are
built again; beside it an adapter has what it has learnt and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from cdra_mm.errors import CheckpointError, PlanError

from ..model.digests import digests_of
from ..model.own_state import PLAN_KEY, base_buffers, base_state
from ..model.targets import parameter_of, resolve
from ..planning.packed_plan import pack_plan, unpack_plan
from ..planning.plan import Plan
from .adapter import Adapter
from .adapter_set import AdapterSet

__all__ = [
    'NOTES',
    'adapters',
    'changed_buffers',
    'count_parameters',
    'describe_in_state',
    'forget_plan',
    'names_beside',
    'noted_digests',
    'packed_plan_of',
    'plan_of',
    'planned_parameters',
    'remember_base',
    'remember_digests',
    'remember_plan',
    'require_free_name',
    'same_plan',
    'trained_whole',
]


# Under these names an adapted model notes its plan, what it is packed as, and its base.
NOTES = ('_cdra_plan', '_cdra_packed', '_cdra_base', '_cdra_digests')


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


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and all base parameters: ``(trainable, total without adapters)``."""
    own = {id(p) for adapter in adapters(model).values() for p in adapter.parameters()}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters() if id(p) not in own)


def planned_parameters(model: nn.Module, plan: Plan) -> dict[str, nn.Parameter]:
    """What a plan trains of a model that has its adapters, by name."""
    trained = {id(parameter_of(model, resolve(model, name))) for name in trained_whole(plan)}
    trained |= {id(p) for adapter in adapters(model).values() for p in adapter.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) in trained}


def trained_whole(plan: Plan) -> list[str]:
    """Names of the model's own parameters that a plan trains whole."""
    whole = [vector.name for vector in plan.vectors if vector.indices is None]
    return [*whole, *plan.also_train]


def remember_plan(model: nn.Module, plan: Plan) -> None:
    """Notes the plan of an adapted model; `plan_of` and its state dict give it from now on."""
    model.__dict__['_cdra_plan'] = plan
    describe_in_state(model)


def forget_plan(model: nn.Module) -> None:
    """Takes the notes off a model that is plain again."""
    for note in NOTES:
        model.__dict__.pop(note, None)


def packed_plan_of(model: nn.Module) -> Tensor | None:
    """The plan of a model as its state dict has it, or None."""
    plan = plan_of(model)
    if plan is None:
        return None
    noted = model.__dict__.get('_cdra_packed')
    if noted is None or noted[0] is not plan:
        noted = model.__dict__['_cdra_packed'] = plan, pack_plan(plan)
    return cast(Tensor, noted[1])


def same_plan(one: Plan, other: Plan) -> bool:
    """Whether two plans train the same, on whatever base and whichever release wrote them."""
    first, second = (replace(plan, fingerprint='', positions=None) for plan in (one, other))
    return first == second


def require_free_name(model: nn.Module) -> None:
    """Refuses a plain model that has something named ``cdra`` itself, where adapters would go.

    Raises:
        PlanError: Names it.
    """
    for path, module in model.named_modules():
        if hasattr(module, 'cdra'):
            name = f'{path}.cdra'.removeprefix('.')
            raise PlanError(
                f'{name} of {type(model).__name__} has the name under which adapters are put on a '
                'module: rename it in the model (for example cdra_)'
            )


def describe_in_state(model: nn.Module) -> None:
    """Makes the state dict of a model hold its plan while it has adapters; once is enough.

    Not while a state dict is being loaded into it: torch goes through the hooks then.
    """
    if '_cdra_described' not in model.__dict__:
        model.__dict__['_cdra_described'] = True
        hooks = cast(Any, model)  # torch has no types for them
        hooks.register_state_dict_post_hook(_put_plan)
        hooks.register_load_state_dict_pre_hook(_take_plan)


def _put_plan(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    packed = packed_plan_of(model)
    if packed is not None and not all(adapter.merged for adapter in adapters(model).values()):
        # Its own: what is done in place to a state dict is not done to the model.
        state_dict[prefix + PLAN_KEY] = packed.clone()


def _take_plan(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Values of one plan are not taken for those of another."""
    plan, packed = plan_of(model), state_dict.get(prefix + PLAN_KEY)
    if plan is None or packed is None:
        return
    del state_dict[prefix + PLAN_KEY]
    try:
        own = packed_plan_of(model)
        assert own is not None
        if isinstance(packed, Tensor) and torch.equal(packed.cpu(), own):
            return
        same = same_plan(unpack_plan(packed), plan)
    except PlanError as error:
        raise CheckpointError(str(error)) from None
    if not same:
        raise CheckpointError(
            'the model has other adapters than the checkpoint (another plan): load it into a model '
            'without adapters'
        )


def remember_base(
    model: nn.Module, beside: Iterable[str], digests: Mapping[str, str] | None = None
) -> None:
    """Notes on a model what `save_adapter` has to tell apart later.

    Args:
        model: The model, its buffers still those of the base.
        beside: Paths of its own submodules or tensors that its plan does not cover (a head).
        digests: Table of the base, where it is known already.
    """
    paths = tuple(beside)
    names = [
        name
        for name in base_state(model)
        if any(not path or f'{name}.'.startswith(f'{path}.') for path in paths)
    ]
    buffers = base_buffers(model)
    known = {name: digests[name] for name in buffers if name in digests} if digests else {}
    known |= digests_of({name: value for name, value in buffers.items() if name not in known})
    model.__dict__['_cdra_base'] = known, frozenset(names)


def remember_digests(model: nn.Module, digests: Mapping[str, str]) -> None:
    """Notes the table of a base whose weights will not be whole again (`sharding`)."""
    model.__dict__['_cdra_digests'] = dict(digests)


def noted_digests(model: nn.Module) -> dict[str, str]:
    """The table of `remember_digests`, of the parameters; empty where there is none."""
    noted = cast('dict[str, str]', model.__dict__.get('_cdra_digests', {}))
    return {name: text for name, text in noted.items() if name not in base_buffers(model)}


def changed_buffers(model: nn.Module) -> set[str]:
    """Names of the buffers that are no longer the base's; all where the base is not known."""
    noted, _ = model.__dict__.get('_cdra_base', ({}, ()))
    now = digests_of(base_buffers(model))
    return {name for name, digest in now.items() if noted.get(name) != digest}


def names_beside(model: nn.Module) -> set[str]:
    """Names of a model's own tensors that its plan does not cover."""
    _, beside = model.__dict__.get('_cdra_base', ({}, ()))
    return set(beside)
