"""An adapter file meets a model: all or nothing, and only on the base that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cdra_mm.errors import CheckpointError

from ..adapters.adapted import remember_base, trained_whole
from ..adapters.apply import AdapterSlot, check_fits, freeze_rest, planned_adapters
from ..adapters.layers import adapt_modules
from ..model.digests import differences, list_differences
from ..model.own_state import base_state
from ..planning.plan import Plan
from .files import AdapterFile, read_adapter
from .old_formats import check_old_fingerprint
from .state_keys import by_first_names, learnt_of

__all__ = ['build_from_file', 'load_adapter', 'put_on', 'replaced_values']


def load_adapter(
    model: nn.Module,
    path: str | Path,
    *,
    check_base: bool = True,
    may_differ: str | Iterable[str] = (),
) -> Plan:
    """Applies the plan of an adapter file to a plain model and loads its values.

    All or nothing: a file that is refused leaves the model as it was.

    Args:
        model: The model with the base weights that the adapter was made for.
        path: A file written by `save_adapter`.
        check_base: Refuse a model of which any frozen weight or buffer is another than in
            training.
        may_differ: Names of weights and buffers that may be others than in training, and stay as
            they are: a position embedding resized for another image size, another head.

    Raises:
        CheckpointError: If the file is missing, truncated or foreign, or was
            trained on other base weights.
        PlanError: If the model or its base weights are not those of the plan.
    """
    file = read_adapter(path)
    slots = build_from_file(model, file, check_base=check_base, may_differ=may_differ)
    values = replaced_values(file, may_differ)
    put_on(model, file.plan, slots, values, file.beside)
    return file.plan


def build_from_file(
    model: nn.Module,
    file: AdapterFile,
    *,
    check_base: bool = True,
    may_differ: str | Iterable[str] = (),
) -> list[AdapterSlot]:
    """The adapters of a file with their values, built but not yet put on.

    Args:
        model: The plain model; it is left as it is.
        file: The file.
        check_base: See `load_adapter`.
        may_differ: See `load_adapter`.

    Raises:
        CheckpointError: If the tensors contradict the plan, or the base weights are others.
        PlanError: If the plan does not fit the model.
    """
    plan = file.plan
    file = replace(file, tensors=by_first_names(model, file.tensors))
    # The file's own table says more of the base than the plan's fingerprint.
    is_old = bool(file.base_fingerprint)
    check_fits(model, plan if check_base and is_old else replace(plan, fingerprint=''))
    slots = planned_adapters(model, plan)
    state = base_state(model)
    _check_tensors(model, file, slots, state, may_differ)
    if check_base and is_old:
        check_old_fingerprint(model, file.path, plan, file.base_fingerprint)
    elif check_base:
        _check_base(file, state, may_differ)
    with torch.no_grad():
        for key, parameter in by_first_names(model, _learnt(slots)).items():
            parameter.copy_(file.tensors[key])
    return slots


def replaced_values(file: AdapterFile, may_differ: str | Iterable[str] = ()) -> dict[str, Tensor]:
    """What a file sets of the model's own tensors: trained whole, and carried."""
    spared = _names(may_differ)
    names = [*trained_whole(file.plan), *(name for name in file.carried if name not in spared)]
    return {name: file.tensors[name] for name in names}


def put_on(
    model: nn.Module,
    plan: Plan,
    slots: list[AdapterSlot],
    values: Mapping[str, Tensor],
    beside: Iterable[str] = (),
) -> None:
    """Puts built adapters on a plain model, sets its own tensors, and freezes the rest.

    Args:
        model: The plain model.
        plan: The plan.
        slots: Its adapters.
        values: What the model's own parameters and buffers become, by name.
        beside: Names of those that the plan does not cover (a head).
    """
    remember_base(model, beside)
    adapt_modules(model, slots)
    state = base_state(model)
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)
    freeze_rest(model, plan)


def _learnt(slots: list[AdapterSlot]) -> dict[str, nn.Parameter]:
    named = ((f'{path}.{suffix}'.removeprefix('.'), adapter) for path, suffix, adapter in slots)
    return learnt_of(named)


def _names(may_differ: str | Iterable[str]) -> set[str]:
    return {may_differ} if isinstance(may_differ, str) else set(may_differ)


def _check_tensors(
    model: nn.Module,
    file: AdapterFile,
    slots: list[AdapterSlot],
    state: Mapping[str, Tensor],
    may_differ: str | Iterable[str],
) -> None:
    """Refuses a file whose tensors are not those of its plan and lists, or do not fit."""
    expected: dict[str, Tensor] = {name: state[name] for name in trained_whole(file.plan)}
    expected |= by_first_names(model, _learnt(slots))
    known = expected.keys() | set(file.carried)
    differ = sorted(
        key
        for key in known | file.tensors.keys()
        if key not in file.tensors
        or key not in known
        or (key in expected and expected[key].shape != file.tensors[key].shape)
    )
    if differ:
        raise CheckpointError(
            f'{file.path} is damaged: {len(differ)} tensors do not fit its plan, the first is '
            f'{differ[0]}'
        )
    twice = sorted(set(file.carried) & expected.keys())
    if twice:
        raise CheckpointError(f'{file.path} is damaged: {twice[0]} is trained and carried')
    for name in replaced_values(file, may_differ).keys() - expected.keys():
        given = tuple(file.tensors[name].shape)
        own = tuple(state[name].shape) if name in state else None
        if own != given:
            what = f'here it is {own}' if own is not None else 'this model has none'
            raise CheckpointError(
                f'{file.path} brings {name} of shape {given} along, {what}: build the model as it '
                f'was in training, or leave it as it is with may_differ=[{name!r}]'
            )


def _check_base(
    file: AdapterFile, state: Mapping[str, Tensor], may_differ: str | Iterable[str]
) -> None:
    """Refuses a model whose own tensors are not those that the file relies on."""
    spared = _names(may_differ)
    covered = {*file.digests, *file.carried, *file.beside, *trained_whole(file.plan)}
    unknown = sorted(spared - covered - state.keys())
    if unknown:
        raise CheckpointError(
            f'may_differ: neither {file.path} nor the model has a weight or buffer {unknown[0]}: '
            'name those that differ as the state dict does'
        )
    table = {name: text for name, text in file.digests.items() if name not in spared}
    found = list(differences(state, table))
    found += [f'{name} (not there)' for name in state if name not in covered | spared]
    if found:
        raise CheckpointError(
            f'{file.path} was trained on other base weights: {list_differences(found)}; load those '
            'into the model first, name what may differ in may_differ=[...] (a position embedding '
            'resized for another image size, a head), or pass check_base=False to take it all the '
            'same'
        )
