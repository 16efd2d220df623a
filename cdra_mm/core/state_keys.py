"""A state dict describes its adapters: from its keys they are built again.

<module>.cdra.<parameter>[:<part>].{rows, cols, down, up}     a low-rank adapter
<module>.cdra.<parameter>.{index, value}                      single entries
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .adapt import adapters, add_entries, add_low_rank
from .errors import CheckpointError, PlanError
from .layers import Adapter
from .targets import Target, resolve

__all__ = ['adapter_prefix', 'build_adapters']

_KEY = re.compile(r'^(?:(?P<module>.+)\.)?cdra\.(?P<suffix>[^.]+)\.(?P<tensor>[a-z]+)$')


def adapter_prefix(name: str) -> str:
    """Prefix of the state-dict keys of a target's adapter.

    Example:
        >>> adapter_prefix('blocks.0.attn.qkv.weight:q')
        'blocks.0.attn.qkv.cdra.weight:q.'
    """
    module, _, suffix = name.rpartition('.')
    return f'{module}.cdra.{suffix}.'.removeprefix('.')


def build_adapters(
    model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str = ''
) -> list[str]:
    """Builds the adapters that the keys of a state dict name, without their values.

    Args:
        model: The plain model, or one with exactly these adapters.
        state_dict: Holds ``<prefix><module>.cdra.<suffix>.<tensor>`` keys.
        prefix: Prefix of the model's keys.

    Returns:
        The target names.

    Raises:
        CheckpointError: If tensors are missing or do not fit the model, or the
            model has other adapters.
    """
    wanted: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state_dict.items():
        match = _KEY.match(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if match:
            name = '.'.join(p for p in (match['module'], match['suffix']) if p)
            wanted.setdefault(name, {})[match['tensor']] = tensor
    if not wanted:
        return []
    present = adapters(model)
    if present:
        _check_same(present, wanted)
        return list(wanted)
    plans = [(_resolve_key(model, name), tensors) for name, tensors in wanted.items()]
    for target, tensors in plans:
        _check_tensors(target, tensors)
    for target, tensors in plans:
        if 'index' in tensors:
            add_entries(model, target, tensors['index'])
        else:
            rank = len(tensors['down'])
            add_low_rank(model, target, tensors['rows'], tensors['cols'], rank)
    return list(wanted)


def _resolve_key(model: nn.Module, name: str) -> Target:
    try:
        return resolve(model, name)
    except PlanError as error:
        raise CheckpointError(f'the checkpoint adapts {name}, but {error}') from None


def _check_tensors(target: Target, tensors: Mapping[str, Tensor]) -> None:
    def fits(name: str, size: int) -> bool:
        index = tensors[name]
        ok = index.dim() == 1 and index.dtype == torch.int64 and len(index) > 0
        return ok and 0 <= int(index.min()) and int(index.max()) < size

    if set(tensors) == {'rows', 'cols', 'down', 'up'} and len(target.shape) == 2:
        rank = tensors['down'].shape[0] if tensors['down'].dim() == 2 else 0
        ok = fits('rows', target.shape[0]) and fits('cols', target.shape[1]) and rank > 0
        ok = ok and tensors['down'].shape == (rank, len(tensors['cols']))
        ok = ok and tensors['up'].shape == (len(tensors['rows']), rank)
    else:
        ok = set(tensors) == {'index', 'value'} and len(target.shape) == 1
        ok = ok and fits('index', target.shape[0])
        ok = ok and tensors['value'].shape == tensors['index'].shape
    if not ok:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise CheckpointError(
            f'the adapter of {target.name} {target.shape} in the checkpoint is damaged or made for '
            f'another architecture: it holds {shapes}'
        )


def _check_same(present: Mapping[str, Adapter], wanted: Mapping[str, Mapping[str, Tensor]]) -> None:
    def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    here = {
        name: shapes(dict(a.named_parameters()) | dict(a.named_buffers()))
        for name, a in present.items()
    }
    there = {name: shapes(tensors) for name, tensors in wanted.items()}
    if here != there:
        differ = sorted(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
        raise CheckpointError(
            f'the model has other adapters than the checkpoint ({len(differ)} differ, the first is '
            f'{differ[0]}): load it into a model without adapters'
        )
