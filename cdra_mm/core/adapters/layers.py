"""The modules that carry adapters.

An adapted module keeps its identity, its base parameters and their names; only
its class changes to a subclass made here, and a child ``cdra`` holds the
adapters. Reading ``module.weight`` gives the effective weight W', so that code
that uses the weight without calling the module (attention implemented
functionally, say) is adapted too; ``named_parameters()`` and ``state_dict()``
give the base W under its unchanged key. Calling the module takes a path that
makes no gradient of the whole weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear  # of nn.MultiheadAttention

from ..model.attention import attention_forward
from ..model.sharded import is_sharded
from .adapter import Adapter, CallAdapter, ParameterAdapter
from .adapter_set import AdapterSet
from .compact_linear import autocast_type, compact_linear
from .copied_linear import copied_linear
from .copied_weights import attach_copies, product_of
from .entries import Entries, entries_linear, pass_entries_gradient
from .layer_copy import may_keep_copy, takes_copy
from .low_rank import LowRank
from .made_copy import MadeCopy

__all__ = [
    'PLAIN_LINEAR',
    'AdapterSlot',
    'adapt_modules',
    'adapted_class',
    'choose_class',
    'sharing',
    'users_of_parameters',
]

# Path of a module, suffix in its `AdapterSet`, adapter.
AdapterSlot = tuple[str, str, Adapter]
# The modules that have a parameter, each with its name there, by the parameter's id.
Users = dict[int, list[tuple[nn.Module, str]]]

# Linear classes whose forward is nothing but F.linear: they take the fast path. Other subclasses
# keep their own forward and read the effective weight. A framework adds its own here.
PLAIN_LINEAR: set[type[nn.Module]] = {nn.Linear, NonDynamicallyQuantizableLinear}


def adapt_modules(model: nn.Module, slots: Iterable[AdapterSlot]) -> None:
    """Puts adapters on modules of a model, in place; the modules keep their identity.

    An adapter of a parameter that other modules of the model share acts there too: merged, it
    would.

    Args:
        model: The model.
        slots: The adapters, each with the path of its module and its suffix there.
    """
    users = users_of_parameters(model)
    product = product_of(model)
    for path, suffix, adapter in slots:
        module = model.get_submodule(path)
        adapter.train(module.training)
        _adapter_set(module).add_module(suffix, adapter)
        touched = [module]
        if isinstance(adapter, ParameterAdapter):
            for other, name in sharing(users, module, adapter.parameter):
                _adapter_set(other).borrowed.setdefault(name, []).append(adapter)
                touched.append(other)
        for one in touched:
            choose_class(one)
            adapters = cast(AdapterSet, one.cdra)
            adapters.product = product
            adapters.join(one)
        attach_copies(model)
        adapter.attach(model)


def users_of_parameters(model: nn.Module) -> Users:
    """The modules that have each parameter of a model, each with its name there, by its id."""
    users: Users = {}
    for module in model.modules():
        if not isinstance(module, Adapter | AdapterSet):
            for name, value in module._parameters.items():
                if value is not None:
                    users.setdefault(id(value), []).append((module, name))
    return users


def sharing(users: Users, module: nn.Module, parameter: str) -> list[tuple[nn.Module, str]]:
    """The other modules that have a module's parameter, each with its name there."""
    shared = module._parameters[parameter]
    return [(other, name) for other, name in users.get(id(shared), []) if other is not module]


def _adapter_set(module: nn.Module) -> AdapterSet:
    if not hasattr(type(module), 'base_class'):
        module.add_module('cdra', AdapterSet())
    return cast(AdapterSet, module.cdra)


def choose_class(module: nn.Module) -> None:
    """Gives a module the class that its adapters ask for."""
    adapters = cast(AdapterSet, module.cdra)
    children = list(adapters.present())
    names = {a.parameter for a in children if isinstance(a, ParameterAdapter)}
    calls = any(isinstance(a, CallAdapter) for a in children)
    base = getattr(type(module), 'base_class', type(module))
    names |= set(adapters.borrowed)
    module.__class__ = adapted_class(cast(Hashable, base), tuple(sorted(names)), calls)


@functools.cache
def adapted_class(base: type[nn.Module], names: tuple[str, ...], calls: bool) -> type[nn.Module]:
    """The subclass of `base` whose `names` read as effective parameters."""
    namespace: dict[str, Any] = {name: _effective_parameter(name) for name in names}
    namespace['base_class'] = base
    namespace['made_of'] = base, names, calls
    namespace['products'] = _products(base)
    namespace['__module__'] = base.__module__
    # A class made at run time cannot be found by name: copy and pickle rebuild it.
    namespace['__reduce_ex__'] = lambda self, _: (
        _new_adapted,
        (base, names, calls),
        self.__dict__,
    )
    forward: Callable[..., Any] | None = None
    if base in PLAIN_LINEAR:
        forward = _linear_forward
    elif base is nn.MultiheadAttention:
        forward = _attention_forward
    if calls:
        forward = _adapted_call(forward or cast(Any, base).forward)
    if forward is not None:
        namespace['forward'] = forward
    return type(f'Adapted{base.__name__}', (base,), namespace)


def _products(base: type[nn.Module]) -> tuple[tuple[str, str], ...]:
    """The weights, each with its bias, that a class multiplies by through `_adapted_product`."""
    if base in PLAIN_LINEAR:
        return (('weight', 'bias'),)
    return (('in_proj_weight', 'in_proj_bias'),) if base is nn.MultiheadAttention else ()


def _new_adapted(base: type[nn.Module], names: tuple[str, ...], calls: bool) -> nn.Module:
    cls = adapted_class(cast(Hashable, base), names, calls)
    return cls.__new__(cls)


def _effective_parameter(name: str) -> property:
    def get(module: nn.Module) -> Tensor:
        base = module._parameters[name]
        assert base is not None
        if is_sharded(base):  # at rest between two uses: it is whole while the module runs
            return base
        return cast(AdapterSet, module.cdra).effective(name, base)

    return property(get, doc=f'The effective {name}: base plus adapters.')


def _linear_forward(module: nn.Module, x: Tensor) -> Tensor:
    return _adapted_product(module, 'weight', x, cast('Tensor | None', module.bias))


def _adapted_call(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The forward `plain` of a module inside those of its call adapters."""

    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        inner = functools.partial(plain, module)
        for adapter in cast(AdapterSet, module.cdra).calls():
            inner = functools.partial(adapter.call, inner)
        return inner(*args, **kwargs)

    return forward


def _adapted_product(module: nn.Module, name: str, x: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear(x, module.<name>, bias)`` without making the effective weight's gradient."""
    weight = cast(Tensor, module._parameters[name])
    carried = cast(AdapterSet, module._modules['cdra'])  # what `nn.Module.__getattr__` finds late
    made = carried.copies.get(name)
    # Torch could not trace what is made in C++.
    if made is not None and (isinstance(made, MadeCopy) or not torch.compiler.is_compiling()):
        y = made.multiply(x, weight, bias)
        if y is not None:
            return cast(Tensor, y)
    through_copy = takes_copy(carried.product, weight)
    if through_copy or (may_keep_copy(carried.product, weight) and name in carried.kept_copies):
        layer = carried.layer_of_copy(name, weight, bias)
        if layer is not None:
            copy = carried.kept_copy_of(name, layer, autocast_type(x) or x.dtype)
            if copy is not None or through_copy:
                return copied_linear(x, layer, copy)
    adapters = list(carried.of(name))
    entries = [a for a in adapters if isinstance(a, Entries)]
    low_rank = [a for a in adapters if isinstance(a, LowRank)]
    if len(entries) + len(low_rank) < len(adapters):
        return F.linear(x, cast(Tensor, getattr(module, name)), bias)
    if not entries:
        return (
            _low_rank_product(x, weight, bias, low_rank) if low_rank else F.linear(x, weight, bias)
        )
    places = carried.places_of(name, entries, weight.shape[1])
    value = torch.cat([a.value for a in entries])
    if not low_rank:
        return entries_linear(x, weight, bias, places, value)
    with torch.no_grad():
        base = weight
        for adapter in entries:
            base = adapter.added_to(base)
    y = _low_rank_product(x, base, bias, low_rank)
    return pass_entries_gradient(y, x, places, value)


def _low_rank_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, adapters: list[LowRank]
) -> Tensor:
    blocks = [a.block for a in adapters]
    factors = [factor for a in adapters for factor in (a.down, a.up)]
    dropouts = [a.dropout if a.training else 0.0 for a in adapters]
    return compact_linear(x, weight, bias, blocks, factors, dropouts)


def _project(module: nn.MultiheadAttention, x: Tensor) -> Tensor:
    return _adapted_product(module, 'in_proj_weight', x, module.in_proj_bias)


_attention_forward = attention_forward(_project, without_gradients=False)
