"""The optimizer of a checkpoint: is it of the run's type, and are its entries what that one keeps?

mmengine takes the settings out of the checkpoint and says nothing of the config's; where they
differ it is told.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch.optim import Optimizer

from cdra_mm.errors import CheckpointError

from ..optimizer_parameters import named_optimizers, named_wrappers
from .kinds_of_values import compare, damaged, is_count, is_number, require

__all__ = ['check_optimizer', 'note_optimizer']

OPTIMIZER_KEY = 'cdra_optimizer'
# Told where they differ: a schedule starts from `initial_lr`, without one from `lr`.
TOLD = ('initial_lr', 'weight_decay')
# Settings of a parameter group that many optimizers share.
COMMON = {'params', 'lr', 'initial_lr', 'weight_decay', 'foreach', 'maximize', 'capturable',
          'differentiable', 'fused', 'swap_tensors'}  # fmt: skip


def note_optimizer(wrapper: Any, meta: MutableMapping[str, Any]) -> None:
    """Puts the types of the optimizers into the meta of a checkpoint."""
    meta[OPTIMIZER_KEY] = {name: type(part).__name__ for name, part in named_optimizers(wrapper)}


def check_optimizer(checkpoint: Mapping[str, Any], wrapper: Any) -> None:
    """Refuses the state of another optimizer, and tells which settings are the old ones.

    Raises:
        CheckpointError: If an optimizer is of another type, has other groups, or an entry of
            another type or shape than the optimizer keeps; names the first.
    """
    noted = checkpoint['meta'].get(OPTIMIZER_KEY)
    noted = noted if isinstance(noted, Mapping) else {}
    told: dict[str, str] = {}
    for name, part, state, what in _parts(checkpoint['optimizer'], wrapper):
        optimizer: Optimizer = part.optimizer
        groups = _groups(state, what)
        _check_type(noted.get(name), groups, optimizer)
        _check_sizes(groups, optimizer, what)
        for given, own in zip(groups, optimizer.param_groups, strict=True):
            compare(given, {k: v for k, v in own.items() if k != 'params'}, what)
            _note_changes(given, own, told)
        _check_state(state.get('state'), optimizer, what)
        scaler = state.get('loss_scaler', {})
        numbers = isinstance(scaler, Mapping) and all(map(is_number, scaler.values()))
        require(numbers, f'loss_scaler of {what}', scaler)
        settings = getattr(part, 'base_param_settings', None)
        kept = state.get('base_param_settings')
        if settings is not None and kept is not None:
            require(isinstance(kept, Mapping), f'base_param_settings of {what}', kept)
            compare(kept, settings, f'base_param_settings of {what}')
    if told:
        changes = '; '.join(f'{key} is {values}' for key, values in told.items())
        MMLogger.get_current_instance().warning(
            f'the optimizer goes on with the settings of the checkpoint ({changes}): to change '
            'them, start from its weights with load_from without resume'
        )


def _parts(given: Any, wrapper: Any) -> Iterator[tuple[str, Any, Mapping[str, Any], str]]:
    """Each optimizer of a run: its name, its wrapper, what is given for it, and words for that."""
    require(isinstance(given, Mapping), 'its optimizer', given)
    parts = named_wrappers(wrapper)
    if '' not in parts:
        unknown = given.keys() - parts.keys()
        require(not unknown, 'its optimizer', next(iter(unknown), None))
    for name, part in parts.items():
        state = given.get(name) if name else given
        what = f'its optimizer {name!r}' if name else 'its optimizer'
        require(isinstance(state, Mapping), what, state)
        yield name, part, state, what


def _groups(state: Mapping[str, Any], what: str) -> list[Mapping[str, Any]]:
    groups = state.get('param_groups')
    require(isinstance(groups, list), f'param_groups of {what}', groups)
    assert isinstance(groups, list)
    for group in groups:
        require(isinstance(group, Mapping), f'a parameter group of {what}', group)
        params = group.get('params')
        numbered = isinstance(params, list) and all(map(is_count, params))
        require(numbered, f'params of {what}', params)
    return groups


def _check_type(noted: Any, groups: list[Mapping[str, Any]], optimizer: Optimizer) -> None:
    """Refuses the groups of another optimizer, where nothing is noted by their own settings."""
    own, given = type(optimizer).__name__, noted
    settings = set(groups[0] if groups else {}) - COMMON
    if noted is None and settings and not set(optimizer.defaults) & settings:
        given = 'of another type'
    if given not in (None, own):
        raise CheckpointError(
            f'the checkpoint was trained with an optimizer {given}, the config has {own}: what '
            'it remembers of the gradients means nothing to another; use the same, or start '
            'from the weights with load_from without resume'
        )


def _check_sizes(groups: list[Mapping[str, Any]], optimizer: Optimizer, what: str) -> None:
    """Refuses groups of other sizes than the run's."""
    given, own = (
        [len(group['params']) for group in held] for held in (groups, optimizer.param_groups)
    )
    if given != own:
        raise damaged(f'{what} has groups of {given} parameters, the run trains {own}')


def _note_changes(given: Mapping[str, Any], own: Mapping[str, Any], told: dict[str, str]) -> None:
    for key in TOLD:
        old, new = (group.get(key, group.get('lr')) for group in (given, own))
        if isinstance(old, int | float) and old != new:
            told.setdefault(key.removeprefix('initial_'), f'{old!r}, not {new!r}')


def _check_state(state: Any, optimizer: Optimizer, what: str) -> None:
    require(isinstance(state, Mapping), f'state of {what}', state)
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    expected = _expected_state(optimizer, parameters)
    for position, entries in state.items():
        require(is_count(position), f'a position in the state of {what}', position)
        where = f'of parameter {position} in {what}'
        require(isinstance(entries, Mapping), f'the state {where}', entries)
        for key, value in entries.items():
            require(isinstance(key, str), f'a key {where}', key)
            plain = value is None or isinstance(value, Tensor) or is_number(value)
            require(plain or isinstance(value, list), f'{key} {where}', value)
        if position >= len(parameters):
            continue
        parameter = parameters[position]
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.dim() == parameter.dim():
                shapes = f'{list(value.shape)}, expected {list(parameter.shape)}'
                if value.shape != parameter.shape:
                    raise damaged(f'{key} {where} is {shapes}')
        own = expected.get(parameter.dim(), {}) if entries else {}
        for key, (kind, is_shaped, is_float) in own.items():
            value = entries.get(key)
            fits = isinstance(value, Tensor) == (kind is Tensor) and (value is None) == (
                kind is type(None)
            )
            if fits and isinstance(value, Tensor):
                fits = value.is_floating_point() == is_float and not value.is_complex()
                fits &= value.shape == parameter.shape if is_shaped else True
                fits &= value.dim() == 0 if not is_shaped and key == 'step' else True
            require(fits, f'{key} {where}', value)


def _expected_state(
    optimizer: Optimizer, parameters: list[nn.Parameter]
) -> dict[int, dict[str, tuple[type, bool, bool]]]:
    """What an optimizer keeps of a parameter, by its number of dimensions.

    Found out by one step of a new one on tiny parameters; {} for one that cannot be built so. For
    each entry: its type, whether it has the shape of the parameter, whether it is of real numbers.
    """
    found: dict[int, dict[str, tuple[type, bool, bool]]] = {}
    try:
        with torch.random.fork_rng([]):
            for dims in {parameter.dim() for parameter in parameters}:
                probe = nn.Parameter(torch.ones([2, 3, 4, 5, 6, 7][:dims]))
                probe.grad = torch.ones_like(probe)
                tried = type(optimizer)([probe], **_settings_of(optimizer))
                tried.step()
                found[dims] = {
                    key: (
                        Tensor if isinstance(value, Tensor) else type(value),
                        isinstance(value, Tensor) and value.shape == probe.shape and dims > 0,
                        isinstance(value, Tensor) and value.is_floating_point(),
                    )
                    for key, value in tried.state[probe].items()
                }
    except Exception:  # an optimizer of somebody's own, with needs of its own
        return {}
    return found


def _settings_of(optimizer: Optimizer) -> dict[str, Any]:
    """What an optimizer was built with; its defaults may hold more than it takes."""
    taken = inspect.signature(type(optimizer)).parameters.values()
    names = {parameter.name for parameter in taken}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        names |= optimizer.defaults.keys()
    return {k: copy.deepcopy(v) for k, v in optimizer.defaults.items() if k in names}
