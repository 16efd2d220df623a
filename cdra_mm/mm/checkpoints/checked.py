"""What a checkpoint says is looked at before anything uses it: every field is of its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.logging import HistoryBuffer
from torch import Tensor

from cdra_mm.errors import CheckpointError
from cdra_mm.reading import NamedFunction

from .keys import complete_averages
from .kinds_of_values import compare, damaged, is_count, is_number, require

__all__ = ['check_checkpoint', 'check_fields']

CONFIG_TEXT = 'config'  # of a meta; mmengine runs it on resume
KEYS = ('state_dict', 'ema_state_dict')


def check_checkpoint(loaded: Any, name: str) -> Any:
    """Refuses what cannot be a checkpoint, and makes it ready: see `complete_averages`.

    The text that mmengine would run is dropped.

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
    complete_averages(loaded)
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
    require(isinstance(meta, Mapping), 'its meta', meta)
    for key in ('epoch', 'iter'):
        require(is_count(meta.get(key)), f'{key} of its meta', meta.get(key))
    seed = meta.get('seed')
    require(seed is None or (is_count(seed) and seed < 1 << 32), 'seed of its meta', seed)
    _check_hub(hub)
    for part in KEYS:
        if part in checkpoint:
            _check_weights(checkpoint[part], part, damaged)
    _check_schedulers(checkpoint.get('param_schedulers'), runner.param_schedulers)
    midway = checkpoint.get('cdra_midway', {})
    require(isinstance(midway, Mapping), 'its cdra_midway', midway)
    _check_weights(midway.get('gradients', {}), 'gradients', damaged)
    for key in ('epoch_iters', 'epoch_length'):
        require(is_count(midway.get(key, 0)), f'{key} of its cdra_midway', midway.get(key))
    if midway.get('epoch_iters'):
        within = midway['epoch_iters'] <= midway.get('epoch_length', 0)
        require(within, 'epoch_length of its cdra_midway', midway.get('epoch_length'))


def _check_hub(hub: Any) -> None:
    require(isinstance(hub, Mapping), 'its message_hub', hub)
    for key in ('log_scalars', 'runtime_info', 'resumed_keys'):
        part = hub.get(key)
        named = isinstance(part, Mapping) and all(isinstance(name, str) for name in part)
        require(named, f'{key} of its message_hub', part)
    for name, buffer in hub['log_scalars'].items():
        require(isinstance(buffer, HistoryBuffer), f'{name} of its log_scalars', buffer)
    for name, resumed in hub['resumed_keys'].items():
        require(type(resumed) is bool, f'{name} of its resumed_keys', resumed)
    info = hub['runtime_info']
    for name, value in info.items():
        if name.startswith(('best_ckpt', 'last_ckpt')):
            require(value is None or isinstance(value, str), f'{name} of its runtime_info', value)
        elif name.startswith('best_score'):
            require(is_number(value), f'{name} of its runtime_info', value)
        elif name == 'keep_ckpt_ids':
            numbered = isinstance(value, list) and all(map(is_count, value))
            require(numbered, f'{name} of its runtime_info', value)


def _check_schedulers(given: Any, own: Any) -> None:
    if isinstance(own, Mapping):
        require(isinstance(given, Mapping), 'its param_schedulers', given)
        for name, schedulers in own.items():
            _check_schedulers(given.get(name), schedulers)
        return
    if not own:
        return
    require(isinstance(given, list), 'its param_schedulers', given)
    if len(given) != len(own):
        raise damaged(f'it has {len(given)} param_schedulers, the config has {len(own)}')
    for state, scheduler in zip(given, own, strict=True):
        what = f'the state of its {type(scheduler).__name__}'
        require(isinstance(state, Mapping), what, state)
        functions = [key for key, value in state.items() if isinstance(value, NamedFunction)]
        for key in functions:
            del state[key]
        held = vars(scheduler)
        unknown = next((key for key in state if key not in held or callable(held[key])), None)
        if unknown is not None:
            raise damaged(f'{what} has {str(unknown)[:40]!r}, which this scheduler has not')
        own_state = {key: held[key] for key in scheduler.state_dict() if not callable(held[key])}
        compare(state, own_state, what)


def _check_weights(state: Any, what: str, error: Callable[[str], CheckpointError]) -> None:
    if not isinstance(state, Mapping):
        raise error(f'its {what} is a {type(state).__name__}, expected tensors by name')
    for name, value in state.items():
        if not isinstance(name, str):
            raise error(f'its {what} has the name {str(name)[:40]!r}, expected text')
        if not isinstance(value, Tensor) and not name.endswith('_extra_state'):
            raise error(f'{name[:80]} of its {what} is a {type(value).__name__}, expected a tensor')
