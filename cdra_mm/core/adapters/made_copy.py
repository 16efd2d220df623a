"""The product of a layer whose copy was made before the model's forward (`copied_weights`).

In Python; the module in C++ (`core.native`, ``Product``) has its own, with the same methods.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import checkpoint

from .compact_linear import autocast_type
from .copied_linear import multiply_by_copy
from .layer_copy import Copy, Layer, sources_of, versions_of
from .low_rank import LowRank

__all__ = ['MadeCopy']

_NOTING = getattr(checkpoint, '_CachingTorchDispatchMode', ())


class MadeCopy(NamedTuple):
    """A copy that was made before it is used.

    Attributes:
        copy: The copy.
        layer: What it was made of; without a bias that is itself computed.
        adapters: Those that have the layer's factors, in their order.
        versions: `versions_of` the layer's sources then.
    """

    copy: Copy
    layer: Layer
    adapters: list[LowRank]
    versions: list[int]

    @property
    def weight(self) -> Tensor:
        """The weight with its updates, ``[O, I]``."""
        return self.copy.weight

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """`copied_linear` of the layer, or None where the copy does not serve it as it is now."""
        under_autocast = autocast_type(x)
        if not self.serves(weight, bias, under_autocast or x.dtype):
            return None
        x = x if under_autocast is None else x.to(under_autocast)
        return multiply_by_copy(x, Layer(weight, bias, *self.layer[2:]), self.copy)

    def serves(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> bool:
        """Whether the layer as it is now can be multiplied in a type by the copy.

        Not where its tensors have been replaced or written to since: by ``functional_call``
        within the model's forward, or after one that was interrupted and could not clean up.
        """
        copy, layer = self.copy.weight, self.layer
        if weight is not layer.weight or (layer.bias is not None and bias is not layer.bias):
            return False
        if copy.dtype != dtype or copy.device != weight.device:
            return False
        factors = iter(layer.factors)
        for adapter in self.adapters:
            down, up = adapter.factors
            if down is not next(factors) or up is not next(factors):
                return False
            if adapter.merged or (adapter.dropout and adapter.training):
                return False
        if torch.compiler.is_compiling():
            # What follows would not be traced. One that was made outside of the program is gone
            # when a checkpoint computes it once more.
            return not self.versions
        if _notes_operations():
            return False
        if copy.is_inference() and not torch.is_inference_mode_enabled():
            return False  # autograd would not take it
        return self.versions == versions_of(sources_of(layer))


def _notes_operations() -> bool:
    """Whether a selective checkpoint expects the same operations when it computes once more.

    The copies of the forward are gone then: each layer makes its own both times.
    """
    stack = range(torch._C._len_torch_dispatch_stack())
    return any([isinstance(torch._C._get_dispatch_stack_at(i), _NOTING) for i in stack])
