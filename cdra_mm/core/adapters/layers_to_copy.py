"""The layers of a model whose products may go through copies, looked for before each forward.

Whatever a search looked at is noted, so that the next one only compares, in C++ where that is there
(`native_linear`): for a model of 48 layers the search takes the host a tenth of a frozen step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..model.sharded import is_sharded
from .adapter_set import AdapterSet
from .compact_linear import autocast_type
from .layer_copy import (
    Layer,
    arguments_of,
    copy_layers,
    is_remade,
    is_traced,
    may_keep_copy,
    sources_of,
    takes_copy,
    versions_of,
)
from .low_rank import LowRank
from .made_copy import MadeCopy
from .native_linear import NATIVE

__all__ = [
    'Found',
    'Group',
    'Groups',
    'carriers',
    'find_layers_to_copy',
    'forget_layers',
    'known_carriers',
]

_CARRIERS = '_cdra_carriers'
_SEARCH = '_cdra_search'


class Found(NamedTuple):
    """A layer whose product may go through a copy.

    Attributes:
        adapters: Those of its module.
        name: Its weight's there.
        layer: What the copy is made of; without a bias that is itself computed.
        blocks: Its low-rank adapters.
        sources: `sources_of` the layer.
        entries: All by which it was found: ``dictionary, key, value, ...``. While each dictionary
            has its value under its key, and the sources their types and devices, a search would
            find the same. Empty where that cannot be said so.
    """

    adapters: AdapterSet
    name: str
    layer: Layer
    blocks: list[LowRank]
    sources: list[Tensor]
    entries: list[Any]


class Group(NamedTuple):
    """Layers whose copies are made together.

    Attributes:
        found: At least one.
        native: They in C++ (``Layers``), where that is there.
    """

    found: list[Found]
    native: Any = None

    def copies(self, dtype: torch.dtype) -> list[Any]:
        """What each layer is multiplied by in a type, see `AdapterSet.copies`."""
        made = self.native and self.native.copies(dtype)
        if made is not None:
            return cast('list[Any]', made)
        copies = copy_layers([found.layer for found in self.found], dtype)
        return [
            MadeCopy(copy, found.layer, found.blocks, versions_of(found.sources))
            for found, copy in zip(self.found, copies, strict=True)
        ]

    def in_native(self, native: Any) -> Group:
        """The same with them in C++; not where a class of tensors may have its own operations.

        Args:
            native: The module.
        """
        layers = [found.layer for found in self.found]
        what = arguments_of(layers)
        if not {type(t) for tensors in what[:4] for t in tensors} <= {Tensor, nn.Parameter}:
            return self
        each = [
            (f.layer.weight, f.layer.bias, f.layer.factors, f.sources, f.entries)
            for f in self.found
        ]
        joints = [layer.joint for layer in layers]
        return self._replace(native=native.Layers(each, joints, what))


# By the layers' product (`choose_product`), device, type, and the type that is computed in.
Groups = dict[tuple[str, torch.device, torch.dtype, torch.dtype], Group]


class _Search(NamedTuple):
    """What a search found, and what it looked at.

    Attributes:
        groups: What was found.
        entries: Those of all layers.
        sources: Likewise.
        kinds: Types and devices of the sources then.
        autocast: A weight on each device, and the type in which autocast multiplied there.
    """

    groups: Groups
    entries: list[Any]
    sources: list[Tensor]
    kinds: bytes
    autocast: list[tuple[Tensor, torch.dtype | None]]

    def holds(self, native: Any) -> bool:
        """Whether a search would find the same now."""
        return (
            native.holds(self.entries)
            and native.kinds_of(self.sources) == self.kinds
            and all(autocast_type(weight) == dtype for weight, dtype in self.autocast)
        )

    def __reduce__(self) -> Any:
        """None: a copy of a model looks for itself."""
        return type(None), ()


def carriers(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that carry adapters."""
    return [module for module in model.modules() if hasattr(type(module), 'base_class')]


def known_carriers(model: nn.Module) -> list[nn.Module]:
    """Those that the last search of a model went through."""
    return cast('list[nn.Module]', model.__dict__.get(_CARRIERS, []))


def forget_layers(model: nn.Module) -> None:
    """Makes the next search of a model look at all of it."""
    model.__dict__.pop(_CARRIERS, None)
    model.__dict__.pop(_SEARCH, None)


def find_layers_to_copy(model: nn.Module) -> Groups:
    """The layers of a model, but for those that are made anew in the backward (`is_remade`)."""
    if is_traced():
        return _searched(model).groups
    search = cast('_Search | None', model.__dict__.get(_SEARCH))
    native = NATIVE.there()
    if search is not None and native is not None and search.holds(native):
        return search.groups
    model.__dict__.pop(_SEARCH, None)
    search = _searched(model)
    if native is not None and search.entries:
        groups = {key: group.in_native(native) for key, group in search.groups.items()}
        search = search._replace(groups=groups, kinds=native.kinds_of(search.sources))
        model.__dict__[_SEARCH] = search
    return search.groups


def _searched(model: nn.Module) -> _Search:
    """A search without kinds; without entries where they do not say all."""
    found_of: defaultdict[Any, list[Found]] = defaultdict(list)
    types: dict[torch.device, tuple[Tensor, torch.dtype | None]] = {}
    entries: list[Any] = []
    sources: list[Tensor] = []
    whole = True
    for found, looked_at in _layers(model):
        whole = whole and bool(looked_at)
        entries += looked_at
        if found is None:
            continue
        weight = found.layer.weight
        sources += found.sources
        if weight.device not in types:
            types[weight.device] = weight, autocast_type(weight)
        dtype = types[weight.device][1] or weight.dtype
        if not is_remade(weight, dtype):
            key = found.adapters.product, weight.device, weight.dtype, dtype
            found_of[key].append(found)
    groups = {key: Group(found) for key, found in found_of.items()}
    return _Search(groups, entries if whole else [], sources, b'', list(types.values()))


def _layers(model: nn.Module) -> Iterator[tuple[Found | None, list[Any]]]:
    """Each layer, None for one that takes no copy now, and by which entries that was found."""
    known = model.__dict__.get(_CARRIERS)
    if known is None:
        known = carriers(model)
        setattr(model, _CARRIERS, known)  # not into its dict: torch 2.6 could not trace that
    for module in known:
        if not hasattr(type(module), 'base_class'):
            continue  # its adapters were removed
        for name, bias_name in cast(Any, type(module)).products:
            found = _found(module, name, bias_name)
            adapters = cast(AdapterSet, module.cdra)
            if found is not None:
                yield found, found.entries
            elif adapters.has_blocks(name):
                yield None, []
            else:
                yield None, [*_own(module, '_modules', 'cdra'), *adapters.entries_of(name)]


def _found(module: nn.Module, name: str, bias_name: str) -> Found | None:
    adapters = cast(AdapterSet, module.cdra)
    weight = cast('Tensor | None', module._parameters.get(name))
    if weight is None or is_sharded(weight):  # whole in its own layer's forward only
        return None
    product = adapters.product
    if not (takes_copy(product, weight) or may_keep_copy(product, weight)):
        return None
    # One with adapters is computed, and cast, where it is used.
    _, computed, _ = cast(Any, type(module)).made_of
    own = bias_name not in computed
    bias = cast('Tensor | None', getattr(module, bias_name)) if own else None
    layer = adapters.layer_of_copy(name, weight, bias)
    if layer is None:
        return None
    blocks = adapters.blocks_of(name)
    sources = sources_of(layer)
    entries = [] if is_traced() else _entries(module, name, bias_name if own else '', layer, blocks)
    return Found(adapters, name, layer, blocks, sources, entries)


def _entries(
    module: nn.Module, name: str, bias_name: str, layer: Layer, blocks: list[LowRank]
) -> list[Any]:
    """See `Found`; no bias has a name where it is computed."""
    adapters = cast(AdapterSet, module.cdra)
    own = adapters.__dict__
    entries = [
        *_own(module, '_modules', 'cdra'),
        *_own(module, '_parameters', name),
        *(own, 'product', own['product']),
        *adapters.entries_of(name),
    ]
    if bias_name:
        if module._parameters.get(bias_name, adapters) is not layer.bias:
            return []
        entries += module._parameters, bias_name, layer.bias
    factors = iter(layer.factors)
    for block in blocks:
        for factor in ('down', 'up'):
            value = next(factors)
            if block._parameters.get(factor) is not value:
                return []  # computed by another module (`torch.nn.utils.parametrize`)
            entries += _own(block, '_parameters', factor)
        settings = block.__dict__
        entries += settings, 'merged', settings['merged']
        entries += settings, 'dropout', settings['dropout']
        if block.dropout:
            entries += settings, 'training', settings['training']
    return entries


def _own(module: nn.Module, kind: str, name: str) -> list[Any]:
    """The entries of a module's parameter or child; `copy` and `pickle` set the dictionary too."""
    held = module.__dict__[kind]
    return [module.__dict__, kind, held, held, name, held[name]]
