"""A state dict describes its adapters: from its keys they are built again.

<module>.cdra.<parameter>[:<part>].{rows, cols, down, up}     a low-rank adapter
<module>.cdra.<parameter>[:<part>].{index, value}             single entries
<module>.cdra.<kind>.<its tensors>                            a part on a whole module
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from cdra_mm.errors import CheckpointError

from ..adapters.adapter import Adapter, kind_of_tensors
from ..adapters.apply import Place, adapters, build_adapter
from ..adapters.layers import adapt_module

__all__ = ['adapter_prefix', 'build_adapters']

_KEY = re.compile(r'^(?:(?P<module>.+)\.)?cdra\.(?P<suffix>[^.]+)\.(?P<tensor>[a-z_]+)$')


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
    places = [_build(model, name, tensors) for name, tensors in wanted.items()]
    for path, suffix, adapter in places:
        adapt_module(model, path, suffix, adapter)
    return list(wanted)


def _build(model: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> Place:
    kind = kind_of_tensors(set(tensors))
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    damaged = f'the adapter of {name} in the checkpoint is damaged or made for another architecture'
    if kind is None:
        raise CheckpointError(f'{damaged}: it holds {shapes}, which no kind of adapter has')
    try:
        place = build_adapter(model, name, kind, kind.sizes_of(tensors))
    except ValueError as error:
        raise CheckpointError(f'{damaged} ({error}): it holds {shapes}') from None
    built = {key: tuple(tensor.shape) for key, tensor in place[2].state_dict().items()}
    if built != shapes:
        raise CheckpointError(f'{damaged}: it holds {shapes}, expected {built}')
    return place


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
