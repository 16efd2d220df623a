"""When the copies of `copied_linear` are made: once a forward of the adapted model.

Before the model's forward all its layers' copies are made by one operation, and after it they are
dropped; the graph holds those that the backward needs. So none is ever out of date, whatever has
changed the factors or the base in between: an optimizer, a loaded checkpoint, averaged weights, a
merge.

A layer that is called outside of such a forward makes its own, with the same bits: one that is
called by itself, or once more in the backward (activation checkpointing).

A small model on a CPU, where it costs much to write all its weights, keeps its copies between
forwards (`kept_copies`).
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from cdra_mm.errors import ConfigError

from ..model.sharded import is_sharded
from .adapter_set import AdapterSet
from .compact_linear import autocast_type
from .kept_copies import KeptCopies, bytes_kept, can_keep
from .layer_copy import (
    Layer,
    MadeCopy,
    copy_layers,
    is_remade,
    may_keep_copy,
    sources_of,
    takes_copy,
    versions_of,
)

__all__ = [
    'PRODUCTS',
    'attach_copies',
    'carriers',
    'check_product',
    'choose_product',
    'detach_copies',
    'detach_from',
    'is_worth_keeping',
    'kept_tensors',
    'let_go',
    'product_of',
]

PRODUCTS = ('auto', 'copied', 'factored', 'kept')
_CARRIERS = '_cdra_carriers'
_PRODUCT = '_cdra_product'
# Bytes of what is kept, and the share of the copies' entries that each step writes; beyond them a
# second model in memory, or the writing, costs more than it saves: docs/performance.md.
LARGEST_KEPT = 2**27
MOST_WRITTEN = 0.25
# Beside the models, not in them: a copied or pickled model has none.
_KEPT: weakref.WeakKeyDictionary[nn.Module, KeptCopies] = weakref.WeakKeyDictionary()


def choose_product(model: nn.Module, product: str) -> None:
    """Chooses how the products of an adapted model are computed.

    Args:
        model: An adapted model.
        product: ``'copied'``: through copies of the weights that hold the updates, each entry
            rounded to the type that is computed in (`copied_linear`). ``'factored'``: without
            rounding an update (`compact_linear`). ``'kept'``: copied, and on a CPU the copies stay
            from forward to forward (`kept_copies`), which takes the memory of a second model.
            ``'auto'``: on a CPU kept where `is_worth_keeping` says so, otherwise factored;
            elsewhere copied.

    Raises:
        ConfigError: If it is another.
    """
    check_product(product)
    let_go(model)
    model.__dict__[_PRODUCT] = product
    for module in carriers(model):
        cast(AdapterSet, module.cdra).product = product


def check_product(product: str) -> None:
    """Raises ConfigError unless `choose_product` knows a word."""
    if product not in PRODUCTS:
        raise ConfigError(f'product={product!r}: expected one of {", ".join(PRODUCTS)}')


def product_of(model: nn.Module) -> str:
    """What `choose_product` has chosen for a model, ``'auto'`` at first."""
    return cast(str, model.__dict__.get(_PRODUCT, 'auto'))


def carriers(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that carry adapters."""
    return [module for module in model.modules() if hasattr(type(module), 'base_class')]


def attach_copies(model: nn.Module) -> None:
    """Makes the copies of a model in each of its forwards, from now on; once is enough."""
    model.__dict__.pop(_CARRIERS, None)  # there may be others now
    if _make_copies not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_make_copies)
        model.register_forward_hook(_drop_copies, always_call=True)


def detach_copies(model: nn.Module) -> None:
    """Undoes `attach_copies` in a model and in all that it holds."""
    for module in model.modules():
        detach_from(module)


def detach_from(module: nn.Module) -> None:
    """Undoes `attach_copies` in one module."""
    module.__dict__.pop(_CARRIERS, None)
    let_go(module)
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_make_copies, _drop_copies)]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)


def is_worth_keeping(layers: Sequence[Layer], dtype: torch.dtype) -> bool:
    """Whether ``'auto'`` keeps the copies of a model's layers on a CPU.

    Where they take little memory, most of their entries never change, and no update is lost in
    the rounding to half precision, in which they save no time. It hangs on the layers alone, not
    on what was computed before: a model that is loaded again computes the same bits.
    """
    entries = sum(layer.joint.size for layer in layers)
    weights = sum(layer.weight.numel() for layer in layers)
    few = entries <= MOST_WRITTEN * weights
    return few and dtype.itemsize >= 4 and bytes_kept(layers, dtype) <= LARGEST_KEPT


class _Found(NamedTuple):
    """A layer whose product may go through a copy."""

    module: nn.Module
    bias_name: str
    adapters: AdapterSet
    name: str
    layer: Layer  # without its bias


def _make_copies(model: nn.Module, _: Any) -> None:
    if not any(hook is _drop_copies for hook in model._forward_hooks.values()):
        return  # someone has removed it: copies would be kept after the forward
    groups: defaultdict[Any, list[_Found]] = defaultdict(list)
    types: dict[torch.device, torch.dtype | None] = {}  # of autocast
    for found in _layers(model):
        weight = found.layer.weight
        if weight.device not in types:
            types[weight.device] = autocast_type(weight)
        dtype = types[weight.device] or weight.dtype
        if not is_remade(weight, dtype):
            key = found.adapters.product, weight.device, weight.dtype, dtype
            groups[key].append(found)
    if _keep(model, groups):
        return
    for (product, *_, dtype), group in groups.items():
        if takes_copy(product, group[0].layer.weight):
            layers = [_with_bias(found) for found in group]
            for found, layer, copy in zip(group, layers, copy_layers(layers, dtype), strict=True):
                sources, adapters = sources_of(layer), found.adapters.blocks_of(found.name)
                made = MadeCopy(copy, layer, adapters, sources, versions_of(sources))
                found.adapters.copies[found.name] = made


def _drop_copies(model: nn.Module, *_: Any) -> None:
    for module in model.__dict__.get(_CARRIERS, ()):
        if hasattr(type(module), 'base_class'):
            cast(AdapterSet, module.cdra).copies.clear()


def _layers(model: nn.Module) -> Iterator[_Found]:
    known = model.__dict__.get(_CARRIERS)
    if known is None:
        known = carriers(model)
        setattr(model, _CARRIERS, known)  # not into its dict: torch 2.6 could not trace that
    for module in known:
        if not hasattr(type(module), 'base_class'):
            continue  # its adapters were removed
        adapters = cast(AdapterSet, module.cdra)
        for name, bias_name in cast(Any, type(module)).products:
            weight = cast('Tensor | None', module._parameters.get(name))
            if weight is None or is_sharded(weight):  # whole in its own layer's forward only
                continue
            product = adapters.product
            if not (takes_copy(product, weight) or may_keep_copy(product, weight)):
                continue
            layer = adapters.layer_of_copy(name, weight, None)
            if layer is not None:
                yield _Found(module, bias_name, adapters, name, layer)


def _with_bias(found: _Found) -> Layer:
    weight, _, joint, factors = found.layer
    return Layer(weight, _bias_to_copy(found), joint, factors)  # torch 2.6 traces no `_replace`


def _bias_to_copy(found: _Found) -> Tensor | None:
    """The layer's own; one with adapters is computed, and cast, where it is used."""
    _, computed, _ = cast(Any, type(found.module)).made_of
    own = found.bias_name not in computed
    return cast('Tensor | None', getattr(found.module, found.bias_name)) if own else None


def _keep(model: nn.Module, groups: dict[Any, list[_Found]]) -> bool:
    """Whether all layers have kept copies now; those that there were are let go where not."""
    if torch.compiler.is_compiling():
        return False
    kept = None
    if len(groups) == 1:
        ((product, *_, dtype), group), *_ = groups.items()
        layers = [found.layer for found in group]
        if may_keep_copy(product, layers[0].weight) and can_keep(layers):
            kept = _KEPT.get(model)
            if kept is None or not kept.fit(layers, dtype):
                worth = product == 'kept' or is_worth_keeping(layers, dtype)
                kept = KeptCopies(layers, dtype) if worth else None
    if kept is None:
        let_go(model)
        return False
    if _KEPT.get(model) is not kept:
        let_go(model)
        _KEPT[model], keeper = kept, weakref.ref(kept)
        for i, found in enumerate(group):
            found.adapters.kept_copies[found.name] = keeper, i
    kept.refresh(layers)
    return True


def kept_tensors(model: nn.Module) -> list[Tensor]:
    """What is held between forwards for the copies of a model."""
    kept = _KEPT.get(model)
    return [] if kept is None else kept.tensors()


def let_go(model: nn.Module) -> None:
    """Forgets the copies that are kept for a model, if there are any; a forward makes them anew."""
    if _KEPT.pop(model, None) is not None:
        for module in carriers(model):
            cast(AdapterSet, module.cdra).kept_copies.clear()
