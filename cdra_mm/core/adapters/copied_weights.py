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
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cdra_mm.errors import ConfigError

from .adapter_set import AdapterSet
from .kept_copies import KeptCopies, bytes_kept, can_keep
from .layer_copy import Layer, may_keep_copy, takes_copy
from .layers_to_copy import (
    Groups,
    carriers,
    find_layers_to_copy,
    forget_layers,
    known_carriers,
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


def attach_copies(model: nn.Module) -> None:
    """Makes the copies of a model in each of its forwards, from now on; once is enough."""
    forget_layers(model)  # there may be others now
    if _make_copies not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_make_copies)
        model.register_forward_hook(_drop_copies, always_call=True)


def detach_copies(model: nn.Module) -> None:
    """Undoes `attach_copies` in a model and in all that it holds."""
    for module in model.modules():
        detach_from(module)


def detach_from(module: nn.Module) -> None:
    """Undoes `attach_copies` in one module."""
    forget_layers(module)
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


def _make_copies(model: nn.Module, _: Any) -> None:
    if not any(hook is _drop_copies for hook in model._forward_hooks.values()):
        return  # someone has removed it: copies would be kept after the forward
    groups = find_layers_to_copy(model)
    if _keep(model, groups):
        return
    for (product, *_, dtype), group in groups.items():
        if takes_copy(product, group.found[0].layer.weight):
            for found, made in zip(group.found, group.copies(dtype), strict=True):
                found.adapters.copies[found.name] = made


def _drop_copies(model: nn.Module, *_: Any) -> None:
    for module in known_carriers(model):
        if hasattr(type(module), 'base_class'):
            cast(AdapterSet, module.cdra).copies.clear()


def _keep(model: nn.Module, groups: Groups) -> bool:
    """Whether all layers have kept copies now; those that there were are let go where not."""
    if torch.compiler.is_compiling():
        return False
    kept = None
    if len(groups) == 1:
        ((product, *_, dtype), group), *_ = groups.items()
        layers = [found.layer for found in group.found]
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
        for i, found in enumerate(group.found):
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
