"""A state dict describes its adapters: by its plan they are built again.

cdra_plan                                             the plan (`core.planning.packed_plan`)
<module>.cdra.<parameter>[:<part>].{down, up}         what a low-rank adapter has learnt
<module>.cdra.<parameter>[:<part>].value              single entries
<module>.cdra.<kind>.<its parameters>                 a part on a whole module
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn

from cdra_mm.errors import CheckpointError, PlanError

from ..adapters.adapted import adapters, plan_of, remember_plan, same_plan
from ..adapters.adapter import Adapter
from ..adapters.apply import check_fits, planned_adapters
from ..adapters.layers import adapt_modules
from ..model.own_state import PLAN_KEY
from ..planning.packed_plan import unpack_plan
from ..planning.plan import Plan

__all__ = ['adapter_prefix', 'build_adapters', 'by_first_names', 'is_adapter_key', 'learnt_of']

_Value = TypeVar('_Value')


def adapter_prefix(name: str) -> str:
    """Prefix of the state-dict keys of a target's adapter.

    Example:
        >>> adapter_prefix('blocks.0.attn.qkv.weight:q')
        'blocks.0.attn.qkv.cdra.weight:q.'
    """
    module, _, suffix = name.rpartition('.')
    return f'{module}.cdra.{suffix}.'.removeprefix('.')


def is_adapter_key(key: str) -> bool:
    """Whether a state-dict key is of an adapter: the child ``cdra`` of a module holds them."""
    return 'cdra' in key.split('.')[:-1]


def learnt_of(built: Iterable[tuple[str, Adapter]]) -> dict[str, nn.Parameter]:
    """The parameters of adapters, by their keys in a state dict."""
    return {
        adapter_prefix(name) + key: parameter
        for name, adapter in built
        for key, parameter in adapter.named_parameters()
    }


def build_adapters(
    model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str = '', plan: Plan | None = None
) -> list[str]:
    """Builds the adapters of a state dict, without their values.

    Args:
        model: The plain model, or one with exactly these adapters.
        state_dict: Holds ``<prefix>cdra_plan``, and what was learnt.
        prefix: Prefix of the model's keys.
        plan: The plan, where it is known already.

    Raises:
        CheckpointError: If the plan is damaged or not there, tensors are missing or do not fit
            it, or the model has other adapters.
        PlanError: If the plan does not fit the model.
    """
    own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    learnt = by_first_names(model, {key: v for key, v in own.items() if is_adapter_key(key)})
    present = adapters(model)
    if plan is None and PLAN_KEY in own:
        try:
            plan = unpack_plan(own[PLAN_KEY])
        except PlanError as error:
            raise CheckpointError(str(error)) from None
    if plan is None and not learnt:
        return []
    if present:
        here = plan_of(model)
        if plan is not None and here is not None and not same_plan(plan, here):
            raise CheckpointError(
                'the model has other adapters than the checkpoint (another plan): load it into a '
                'model without adapters'
            )
        _check_learnt(learnt, by_first_names(model, learnt_of(present.items())))
        return list(present)
    if plan is None:
        raise CheckpointError(
            f'the state dict holds adapters (the first is {next(iter(learnt))}) and no '
            f'{PLAN_KEY}, by which they are built: it is damaged, or of an earlier release and no '
            'checkpoint of a run; load that checkpoint, or the adapter file'
        )
    check_fits(model, replace(plan, fingerprint=''))
    slots = planned_adapters(model, plan)
    named = [(f'{path}.{suffix}'.removeprefix('.'), adapter) for path, suffix, adapter in slots]
    _check_learnt(learnt, by_first_names(model, learnt_of(named)))
    adapt_modules(model, slots)
    if slots:
        remember_plan(model, plan)
    return [name for name, _ in named]


def by_first_names(model: nn.Module, tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """What adapters hold by their keys, each under the first name of its module in the model.

    A module may stand in several places, and a plan may name any of them.
    """
    first: dict[int, str] = {}
    modules = model.named_modules(remove_duplicate=False)
    names = {path: first.setdefault(id(module), path) for path, module in modules}
    found = {}
    for key, value in tensors.items():
        path, mark, rest = key.partition('.cdra.')
        found[f'{names.get(path, path)}{mark}{rest}' if mark else key] = value
    return found


def _check_learnt(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuses what was learnt where it is not what the adapters hold."""
    for key, value in given.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f'the checkpoint is damaged: {key} is a {type(value).__name__}, expected a tensor; '
                'use another one'
            )
    for key in sorted(given.keys() | expected.keys()):
        there, here = (
            tuple(tensors[key].shape) if key in tensors else None for tensors in (given, expected)
        )
        if there == here:
            continue
        what = f'{key} is {there}, expected {here}'
        if there is None:
            what = f'it lacks {key}'
        elif here is None:
            what = f'its plan has no {key}'
        raise CheckpointError(
            f'the checkpoint is damaged or made for another architecture: {what}; use another one'
        )
