"""Compact adapters and the modules that carry them (CDRA-SPT, Eq. 6).

    W' = W + scale * scatter_{R,C}( up @ down )        up [|R|, r], down [r, |C|]

An adapted module keeps its identity, its base parameters and their names; only
its class changes to a subclass made here, and a child ``cdra`` holds the
adapters. Reading ``module.weight`` gives the effective weight W', so that code
that uses the weight without calling the module (attention implemented
functionally, say) is adapted too; ``named_parameters()`` and ``state_dict()``
give the base W under its unchanged key.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear  # of nn.MultiheadAttention

from .attention import attend
from .compact_linear import compact_linear

__all__ = ['PLAIN_LINEAR', 'Adapter', 'AdapterSet', 'Entries', 'LowRank', 'adapt_module']

# Linear classes whose forward is nothing but F.linear: they take the fast path. Other subclasses
# keep their own forward and read the effective weight. A framework adds its own here.
PLAIN_LINEAR: set[type[nn.Module]] = {nn.Linear, NonDynamicallyQuantizableLinear}


class Adapter(nn.Module, ABC):
    """A change of one base parameter, or of some rows of it.

    Attributes:
        parameter: Name of the base parameter in the adapted module.
        merged: Whether the base holds the change; then nothing is added and
            nothing of the adapter goes into a state dict.
    """

    is_adapter = True

    def __init__(self, parameter: str) -> None:
        super().__init__()
        self.parameter = parameter
        self.merged = False

    @abstractmethod
    def added_to(self, base: Tensor) -> Tensor:
        """The base plus the change, differentiable, a new tensor."""

    @torch.no_grad()
    def merge_(self, base: Tensor, sign: int = 1) -> None:
        """Adds (or subtracts) the change to the base in place."""
        change = self.added_to(torch.zeros_like(base, dtype=torch.float64))
        base.copy_((base.double() + sign * change).to(base.dtype))
        self.merged = sign > 0

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if not self.merged:
            super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        held = any(key.startswith(prefix) for key in state_dict)
        if self.merged and not held:
            return  # a merged state for a merged model
        # The base that comes with an adapter does not hold its change.
        self.merged = False
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class LowRank(Adapter):
    """The low-rank adapter of one compact block (Eq. 6).

    Args:
        parameter: Name of the base parameter.
        start: First row of the target in the base parameter.
        rows: Rows of the block in the target, int64 ``[|R|]``.
        cols: Columns of the block, int64 ``[|C|]``.
        rank: r.
        scale: Factor of the update; the paper has none.
        like: Tensor that gives device and floating type of the factors.
    """

    rows: Tensor
    cols: Tensor

    def __init__(
        self,
        parameter: str,
        start: int,
        rows: Tensor,
        cols: Tensor,
        rank: int,
        like: Tensor,
        scale: float = 1.0,
    ) -> None:
        super().__init__(parameter)
        self.start, self.scale = start, scale
        dtype = _master_dtype(like)
        self.register_buffer('rows', rows.to(like.device))
        self.register_buffer('cols', cols.to(like.device))
        self.down = nn.Parameter(torch.zeros(rank, len(cols), device=like.device, dtype=dtype))
        self.up = nn.Parameter(torch.zeros(len(rows), rank, device=like.device, dtype=dtype))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """``down`` Kaiming-uniform (a = sqrt 5), ``up`` zero: the update starts at zero."""
        bound = 1 / math.sqrt(self.down.shape[1])
        values = torch.rand(self.down.shape, generator=generator) * 2 - 1
        self.down.copy_(values * bound)
        self.up.zero_()

    def delta_weight(self) -> Tensor:
        """The update of the block, ``[|R|, |C|]``."""
        return self.scale * (self.up @ self.down)

    def added_to(self, base: Tensor) -> Tensor:
        """See `Adapter.added_to`."""
        index = ((self.rows + self.start)[:, None], self.cols[None, :])
        return base.index_put(index, self.delta_weight().to(base.dtype), accumulate=True)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        rank, cols = self.down.shape
        return f'{self.parameter}, block={len(self.rows)}x{cols}, rank={rank}'


class Entries(Adapter):
    """Single trained entries of a vector (SPT's rule for sparse vectors, D9).

    Args:
        parameter: Name of the base parameter.
        index: Trained entries, int64 ``[n]``.
        like: Tensor that gives device and floating type of the values.
    """

    index: Tensor

    def __init__(self, parameter: str, index: Tensor, like: Tensor) -> None:
        super().__init__(parameter)
        self.register_buffer('index', index.to(like.device))
        self.value = nn.Parameter(
            torch.zeros(len(index), device=like.device, dtype=_master_dtype(like))
        )

    def added_to(self, base: Tensor) -> Tensor:
        """See `Adapter.added_to`."""
        return base.index_add(0, self.index, self.value.to(base.dtype))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f'{self.parameter}, entries={len(self.index)}'


class AdapterSet(nn.Module):
    """The adapters of one module, by target suffix (``weight``, ``weight:q`` ...)."""

    def of(self, parameter: str) -> Iterator[Adapter]:
        """The unmerged adapters of one base parameter."""
        for adapter in self._modules.values():
            if cast(Adapter, adapter).parameter == parameter and not cast(Adapter, adapter).merged:
                yield cast(Adapter, adapter)

    def effective(self, parameter: str, base: Tensor) -> Tensor:
        """The base parameter with its adapters added."""
        for adapter in self.of(parameter):
            base = adapter.added_to(base)
        return base


def adapt_module(module: nn.Module, suffix: str, adapter: Adapter) -> None:
    """Puts an adapter on a module, in place; the module keeps its identity."""
    if not hasattr(type(module), 'base_class'):
        module.add_module('cdra', AdapterSet())
    adapters = cast(AdapterSet, module.cdra)
    adapters.add_module(suffix, adapter)
    names = sorted({cast(Adapter, child).parameter for child in adapters.children()})
    base = getattr(type(module), 'base_class', type(module))
    module.__class__ = _adapted_class(cast(Hashable, base), tuple(names))


@functools.cache
def _adapted_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """The subclass of `base` whose `names` read as effective parameters."""
    namespace: dict[str, Any] = {name: _effective_parameter(name) for name in names}
    namespace['base_class'] = base
    namespace['__module__'] = base.__module__
    # A class made at run time cannot be found by name: copy and pickle rebuild it.
    namespace['__reduce_ex__'] = lambda self, _: (
        _new_adapted,
        (base, names),
        self.__dict__,
    )
    if base in PLAIN_LINEAR:
        namespace['forward'] = _linear_forward
    elif base is nn.MultiheadAttention:
        namespace['forward'] = _attention_forward
    return type(f'Adapted{base.__name__}', (base,), namespace)


def _new_adapted(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    cls = _adapted_class(cast(Hashable, base), names)
    return cls.__new__(cls)


def _effective_parameter(name: str) -> property:
    def get(module: nn.Module) -> Tensor:
        base = module._parameters[name]
        assert base is not None
        return cast(AdapterSet, module.cdra).effective(name, base)

    return property(get, doc=f'The effective {name}: base plus adapters.')


def _linear_forward(module: nn.Module, x: Tensor) -> Tensor:
    return _adapted_product(module, 'weight', x, cast('Tensor | None', module.bias))


def _adapted_product(module: nn.Module, name: str, x: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear(x, module.<name>, bias)`` without making the effective weight's gradient."""
    weight = cast(Tensor, module._parameters[name])
    adapters = [cast(LowRank, a) for a in cast(AdapterSet, module.cdra).of(name)]
    if not adapters:
        return F.linear(x, weight, bias)
    blocks = [(a.start + a.rows if a.start else a.rows, a.cols, a.scale) for a in adapters]
    factors = [factor for a in adapters for factor in (a.down, a.up)]
    return compact_linear(x, weight, bias, blocks, factors)


def _attention_forward(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Self-attention by one product for q, k and v; what is not plain by torch's own forward."""
    is_plain = (
        query is key is value
        and query.dim() == 3
        and key_padding_mask is attn_mask is module.bias_k is module.bias_v is None
        and not (is_causal or module.add_zero_attn)
    )
    if not (is_plain and torch.is_grad_enabled()):  # without gradients torch has kernels of its own
        own: Callable[..., tuple[Tensor, Tensor | None]] = cast(
            Any, type(module)
        ).base_class.forward
        masks = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        return own(module, query, key, value, *masks)
    x = query if module.batch_first else query.transpose(0, 1)
    q, k, v = _adapted_product(module, 'in_proj_weight', x, module.in_proj_bias).chunk(3, -1)
    out, weights = attend(
        q,
        k,
        v,
        module.num_heads,
        dropout_p=module.dropout if module.training else 0.0,
        need_weights=need_weights,
        average_weights=average_attn_weights,
    )
    out = cast(Tensor, module.out_proj(out))
    return out if module.batch_first else out.transpose(0, 1), weights


def _master_dtype(like: Tensor) -> torch.dtype:
    """Factors are trained in fp32 at least: small updates vanish in half precision."""
    return torch.promote_types(like.dtype, torch.float32)
