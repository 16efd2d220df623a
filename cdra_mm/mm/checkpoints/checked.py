"""What a checkpoint says is looked at before anything uses it: every field is of its type."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapperDict
from torch import Tensor, nn
from torch.optim import Optimizer

from cdra_mm.errors import CheckpointError
from cdra_mm.reading import NamedFunction

__all__ = ['check_checkpoint', 'check_fields', 'check_optimizer']

LATEST = 1 << 53  # of an iteration, an epoch
FLAGS = (bool, type(None))
CONFIG_TEXT = 'config'  # of a meta; mmengine runs it on resume
KEYS = ('state_dict', 'ema_state_dict')


def check_checkpoint(loaded: Any, name: str) -> Any:
    """Refuses what cannot be a checkpoint, and drops the text that mmengine would run.

    Args:
        loaded: What was read.
        name: The file, for the message.

    Returns:
        The same.

    Raises:
        CheckpointError: If its weights or its meta are of a wrong type.
    """
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f'{name} holds a {type(loaded).__name__} and no weights by name: expected what '
            'torch.save wrote of a state dict or a checkpoint'
        )
    for part in KEYS:
        if part in loaded:
            _check_weights(loaded[part], part, lambda what: CheckpointError(f'{name}: {what}'))
    meta = loaded.get('meta')
    if meta is not None and not isinstance(meta, Mapping):
        raise CheckpointError(f'{name} is damaged: its meta is a {type(meta).__name__}')
    if isinstance(meta, dict):
        meta.pop(CONFIG_TEXT, None)
    return loaded


def check_fields(checkpoint: Mapping[str, Any], runner: Any) -> None:
    """Refuses a checkpoint to resume of which a field is of a wrong type.

    Args:
        checkpoint: A checkpoint with all its parts. What its schedulers hold as functions is taken
            out: the schedulers of the run have theirs.
        runner: The run, its schedulers built.

    Raises:
        CheckpointError: Names the first.
    """
    meta, hub = checkpoint['meta'], checkpoint['message_hub']
    _require(isinstance(meta, Mapping), 'its meta', meta)
    for key in ('epoch', 'iter'):
        _require(_is_count(meta.get(key)), f'{key} of its meta', meta.get(key))
    seed = meta.get('seed')
    _require(seed is None or (_is_count(seed) and seed < 1 << 32), 'seed of its meta', seed)
    _check_hub(hub)
    for part in KEYS:
        if part in checkpoint:
            _check_weights(checkpoint[part], part, _damaged)
    _check_schedulers(checkpoint.get('param_schedulers'), runner.param_schedulers)
    midway = checkpoint.get('cdra_midway', {})
    _require(isinstance(midway, Mapping), 'its cdra_midway', midway)
    _check_weights(midway.get('gradients', {}), 'gradients', _damaged)
    for key in ('epoch_iters', 'epoch_length'):
        _require(_is_count(midway.get(key, 0)), f'{key} of its cdra_midway', midway.get(key))
    if midway.get('epoch_iters'):
        within = midway['epoch_iters'] <= midway.get('epoch_length', 0)
        _require(within, 'epoch_length of its cdra_midway', midway.get('epoch_length'))


def check_optimizer(checkpoint: Mapping[str, Any], wrapper: Any) -> None:
    """Refuses an optimizer state whose entries are of other types than the optimizer keeps.

    Args:
        checkpoint: A checkpoint to resume.
        wrapper: The optimizer wrapper of the run, or a dict of such.

    Raises:
        CheckpointError: Names the first entry.
    """
    given = checkpoint['optimizer']
    _require(isinstance(given, Mapping), 'its optimizer', given)
    several = isinstance(wrapper, OptimWrapperDict)
    parts = dict(wrapper.items()) if several else {'': wrapper}
    if several:
        unknown = given.keys() - parts.keys()
        _require(not unknown, 'its optimizer', next(iter(unknown), None))
    for name, part in parts.items():
        state = given.get(name) if several else given
        what = f'its optimizer {name!r}' if name else 'its optimizer'
        _require(isinstance(state, Mapping), what, state)
        _check_groups(state, part.optimizer, what)
        _check_state(state.get('state'), part.optimizer, what)
        scaler = state.get('loss_scaler', {})
        numbers = isinstance(scaler, Mapping) and all(map(_is_number, scaler.values()))
        _require(numbers, f'loss_scaler of {what}', scaler)
        own = getattr(part, 'base_param_settings', None)
        kept = state.get('base_param_settings')
        if own is not None and kept is not None:
            _require(isinstance(kept, Mapping), f'base_param_settings of {what}', kept)
            _compare(kept, own, f'base_param_settings of {what}')


def _check_groups(state: Mapping[str, Any], optimizer: Optimizer, what: str) -> None:
    groups: Any = state.get('param_groups')
    _require(isinstance(groups, list), f'param_groups of {what}', groups)
    for group in groups:
        _require(isinstance(group, Mapping), f'a parameter group of {what}', group)
        params = group.get('params')
        numbered = isinstance(params, list) and all(map(_is_count, params))
        _require(numbered, f'params of {what}', params)
    for group, own in zip(groups, optimizer.param_groups, strict=False):
        _compare(group, {k: v for k, v in own.items() if k != 'params'}, what)


def _check_state(state: Any, optimizer: Optimizer, what: str) -> None:
    _require(isinstance(state, Mapping), f'state of {what}', state)
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    expected = _expected_state(optimizer, parameters)
    for position, entries in state.items():
        _require(_is_count(position), f'a position in the state of {what}', position)
        where = f'of parameter {position} in {what}'
        _require(isinstance(entries, Mapping), f'the state {where}', entries)
        for key, value in entries.items():
            _require(isinstance(key, str), f'a key {where}', key)
            plain = value is None or isinstance(value, Tensor) or _is_number(value)
            _require(plain or isinstance(value, list), f'{key} {where}', value)
        own = expected.get(parameters[position].dim()) if position < len(parameters) else None
        if own is None or not entries:
            continue
        parameter = parameters[position]
        for key, (kind, is_shaped, is_float) in own.items():
            value = entries.get(key)
            fits = isinstance(value, Tensor) == (kind is Tensor) and (value is None) == (
                kind is type(None)
            )
            if fits and isinstance(value, Tensor):
                fits = value.is_floating_point() == is_float and not value.is_complex()
                fits &= value.shape == parameter.shape if is_shaped else True
                fits &= value.dim() == 0 if not is_shaped and key == 'step' else True
            _require(fits, f'{key} {where}', value)


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


def _check_hub(hub: Any) -> None:
    _require(isinstance(hub, Mapping), 'its message_hub', hub)
    for key in ('log_scalars', 'runtime_info', 'resumed_keys'):
        part = hub.get(key)
        named = isinstance(part, Mapping) and all(isinstance(name, str) for name in part)
        _require(named, f'{key} of its message_hub', part)
    for name, buffer in hub['log_scalars'].items():
        _require(isinstance(buffer, HistoryBuffer), f'{name} of its log_scalars', buffer)
    for name, resumed in hub['resumed_keys'].items():
        _require(type(resumed) is bool, f'{name} of its resumed_keys', resumed)
    info = hub['runtime_info']
    for name, value in info.items():
        if name.startswith(('best_ckpt', 'last_ckpt')):
            _require(value is None or isinstance(value, str), f'{name} of its runtime_info', value)
        elif name.startswith('best_score'):
            _require(_is_number(value), f'{name} of its runtime_info', value)
        elif name == 'keep_ckpt_ids':
            numbered = isinstance(value, list) and all(map(_is_count, value))
            _require(numbered, f'{name} of its runtime_info', value)


def _check_schedulers(given: Any, own: Any) -> None:
    if isinstance(own, Mapping):
        _require(isinstance(given, Mapping), 'its param_schedulers', given)
        for name, schedulers in own.items():
            _check_schedulers(given.get(name), schedulers)
        return
    if not own:
        return
    _require(isinstance(given, list), 'its param_schedulers', given)
    if len(given) != len(own):
        raise _damaged(f'it has {len(given)} param_schedulers, the config has {len(own)}')
    for state, scheduler in zip(given, own, strict=True):
        what = f'the state of its {type(scheduler).__name__}'
        _require(isinstance(state, Mapping), what, state)
        functions = [key for key, value in state.items() if isinstance(value, NamedFunction)]
        for key in functions:
            del state[key]
        held = vars(scheduler)
        unknown = next((key for key in state if key not in held or callable(held[key])), None)
        if unknown is not None:
            raise _damaged(f'{what} has {str(unknown)[:40]!r}, which this scheduler has not')
        own_state = {key: held[key] for key in scheduler.state_dict() if not callable(held[key])}
        _compare(state, own_state, what)


def _compare(given: Mapping[str, Any], own: Mapping[str, Any], what: str) -> None:
    """Each entry of one's own has a counterpart of its kind; only switches may be lacking."""
    for key, value in own.items():
        if key in given:
            _require(_same_kind(given[key], value), f'{key} of {what}', given[key])
        elif not isinstance(value, FLAGS):
            raise _damaged(f'{what} lacks {key}')


def _same_kind(given: Any, own: Any) -> bool:
    if isinstance(own, FLAGS):
        return isinstance(given, FLAGS) or (
            own is None and (_is_number(given) or isinstance(given, str))
        )
    if isinstance(own, str):
        return isinstance(given, str)
    if isinstance(own, Tensor):
        return isinstance(given, Tensor) and given.shape == own.shape
    if _is_number(own):
        whole = isinstance(own, int) and not isinstance(own, bool)
        finite = _is_number(given) and (math.isfinite(given) or not math.isfinite(own))
        return finite and (not whole or float(given).is_integer())
    if isinstance(own, list | tuple):
        if not isinstance(given, list | tuple):
            return False
        if isinstance(own, tuple) and len(given) != len(own):
            return False
        return all(_same_kind(value, own[0]) for value in given) if own else True
    return not callable(own)


def _check_weights(state: Any, what: str, error: Callable[[str], CheckpointError]) -> None:
    if not isinstance(state, Mapping):
        raise error(f'its {what} is a {type(state).__name__}, expected tensors by name')
    for name, value in state.items():
        if not isinstance(name, str):
            raise error(f'its {what} has the name {str(name)[:40]!r}, expected text')
        if not isinstance(value, Tensor) and not name.endswith('_extra_state'):
            raise error(f'{name[:80]} of its {what} is a {type(value).__name__}, expected a tensor')


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LATEST


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_complex()
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) or isinstance(value, float)
    except (TypeError, ValueError, OverflowError):
        return False


def _require(holds: bool, what: str, given: Any) -> None:
    if not holds:
        shown = ' '.join(repr(given).split())[:60] if _is_short(given) else type(given).__name__
        raise _damaged(f'{what} is {shown}')


def _is_short(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(
        f'the checkpoint is damaged, or was made with another config: {what}; use another '
        'checkpoint, or the config it was trained with'
    )
