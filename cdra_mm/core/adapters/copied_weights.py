"""When the copies of `copied_linear` are made: once a forward of the adapted model.

Before the model's forward all its layers' copies are made by one operation, and after it they are
dropped; the graph holds those that the backward needs. So none is ever out of date, whatever has
changed the factors or the base in between: an optimizer, a loaded checkpoint, averaged weights, a
merge.

A layer that is called outside of such a forward makes its own, with the same bits: one that is
called by itself, or once more in the backward (activation checkpointing).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from cdra_mm.errors import ConfigError

from ..model.sharded import is_sharded
from .adapter_set import AdapterSet
from .compact_linear import autocast_type
from .copied_linear import Layer, copy_layers, is_remade

__all__ = [
    'PRODUCTS',
    'attach_copies',
    'carriers',
    'check_product',
    'choose_product',
    'detach_copies',
    'detach_from',
    'product_of',
]

PRODUCTS = ('auto', 'copied', 'factored')
_CARRIERS = '_cdra_carriers'
_PRODUCT = '_cdra_product'


def choose_product(model: nn.Module, product: str) -> None:
    """Chooses how the products of an adapted model are computed.

    Args:
        model: An adapted model.
        product: ``'copied'``: through copies of the weights that hold the updates, each entry
            rounded to the type that is computed in (`copied_linear`). ``'factored'``: without
            rounding an update (`compact_linear`). ``'auto'``: copied, on a CPU factored.

    Raises:
        ConfigError: If it is another.
    """
    check_product(product)
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
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_make_copies, _drop_copies)]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)


def _make_copies(model: nn.Module, _: Any) -> None:
    if _drop_copies not in model._forward_hooks.values():
        return  # someone has removed it: copies would be kept after the forward
    groups: defaultdict[Any, list[tuple[AdapterSet, str, Layer]]] = defaultdict(list)
    for adapters, name, layer in _layers(model):
        weight = layer.weight
        dtype = autocast_type(weight) or weight.dtype
        if not is_remade(weight, dtype):
            groups[weight.device, weight.dtype, dtype].append((adapters, name, layer))
    for (*_, dtype), group in groups.items():
        copies = copy_layers([layer for _, _, layer in group], dtype)
        for (adapters, name, _), copy in zip(group, copies, strict=True):
            adapters.copies[name] = copy


def _drop_copies(model: nn.Module, *_: Any) -> None:
    for module in model.__dict__.get(_CARRIERS, ()):
        if hasattr(type(module), 'base_class'):
            cast(AdapterSet, module.cdra).copies.clear()


def _layers(model: nn.Module) -> Iterator[tuple[AdapterSet, str, Layer]]:
    known = model.__dict__.get(_CARRIERS)
    if known is None:
        known = model.__dict__[_CARRIERS] = carriers(model)
    for module in known:
        if not hasattr(type(module), 'base_class'):
            continue  # its adapters were removed
        adapters = cast(AdapterSet, module.cdra)
        for name, bias_name in cast(Any, type(module)).products:
            weight = cast('Tensor | None', module._parameters.get(name))
            if weight is None or is_sharded(weight):  # whole in its own layer's forward only
                continue
            layer = adapters.layer(name, weight, None)
            if layer is not None:  # its effective bias is computed only then
                with torch.no_grad():
                    bias = getattr(module, bias_name)
                yield adapters, name, layer._replace(bias=bias)
