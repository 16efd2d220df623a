"""The copy of a weight with its update, which an adapted product goes through (`copied_linear`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..model.row_int8 import is_int8
from .block_ops import adapted_copies
from .joint_blocks import JointBlocks
from .native_linear import NATIVE

if TYPE_CHECKING:
    from .low_rank import LowRank

__all__ = [
    'Copy',
    'Layer',
    'MadeCopy',
    'copy_layers',
    'is_remade',
    'is_traced',
    'may_keep_copy',
    'sources_of',
    'takes_copy',
    'versions_of',
]


_ask_exporting = getattr(torch.compiler, 'is_exporting', None)  # not in torch 2.6


class Layer(NamedTuple):
    """What makes a linear layer's `Copy`.

    Attributes:
        weight: Base weight ``[O, I]``.
        bias: ``[O]`` or None.
        joint: Its blocks.
        factors: ``down [r, |C|], up [|R|, r]`` of each block in turn.
    """

    weight: Tensor
    bias: Tensor | None
    joint: JointBlocks
    factors: list[Tensor]


def sources_of(layer: Layer) -> list[Tensor]:
    """The tensors that a layer's copy is made of; not a bias that is itself computed."""
    bias = [layer.bias] if isinstance(layer.bias, nn.Parameter) else []
    return [layer.weight, *bias, *layer.factors]


class Copy(NamedTuple):
    """What a layer is multiplied by, in the type of the product.

    Attributes:
        weight: The weight with its updates, ``[O, I]``.
        bias: ``[O]``, or None: the layer's own is taken.
        kept: Whether it stays between forwards (`kept_copies`).
    """

    weight: Tensor
    bias: Tensor | None
    kept: bool = False


class MadeCopy(NamedTuple):
    """A copy that was made before it is used.

    Attributes:
        copy: The copy.
        layer: What it was made of; without a bias that is itself computed.
        adapters: Those that have the layer's factors, in their order.
        sources: `sources_of` the layer.
        entries: See `layers_to_copy.Found`.
        state: How often each source had been written to in place then; by the module in C++, types
            and devices too.
    """

    copy: Copy
    layer: Layer
    adapters: list[LowRank]
    sources: list[Tensor]
    entries: list[Any]
    state: list[int] | bytes

    def _serves_still(self, native: Any, dtype: torch.dtype) -> bool:
        """Whether the layer can be multiplied in a type by the copy, as `serves`, told by C++.

        Args:
            native: The module by which the copy was made.
            dtype: The type.
        """
        copy = self.copy.weight
        if copy.dtype != dtype or (copy.is_inference() and not torch.is_inference_mode_enabled()):
            return False
        same = native.holds(self.entries) and native.state_of(self.sources, True) == self.state
        return cast(bool, same)

    def serves(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> bool:
        """Whether the layer as it is now can be multiplied in a type by the copy.

        Not where its tensors have been replaced or written to since: by ``functional_call``
        within the model's forward, or after one that was interrupted and could not clean up.
        """
        if isinstance(self.state, bytes):
            return self._serves_still(NATIVE.there(), dtype)
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
        if torch.compiler.is_compiling():  # what follows would not be traced
            return True
        if copy.is_inference() and not torch.is_inference_mode_enabled():
            return False  # autograd would not take it
        return self.state == versions_of(self.sources)


def versions_of(tensors: Sequence[Tensor]) -> list[int]:
    """How often each tensor has been written to in place; nothing while that would be traced."""
    if torch.compiler.is_compiling():
        return []
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # one was made in inference mode, and has none
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def copy_layers(layers: Sequence[Layer], dtype: torch.dtype) -> list[Copy]:
    """The copies of layers on one device, by one operation.

    Args:
        layers: At least one.
        dtype: Type of the copies.
    """
    biases = [layer.bias for layer in layers if layer.bias is not None]
    with torch.no_grad():
        copies = adapted_copies(
            [layer.weight for layer in layers],
            biases,
            [factor for layer in layers for factor in layer.factors],
            [index for layer in layers for index in layer.joint.indices],
            [len(layer.joint.scales) for layer in layers],
            [scale for layer in layers for scale in layer.joint.scales],
            dtype,
        )
    rest = iter(copies[len(layers) :])
    return [
        Copy(copy, None if layer.bias is None else next(rest))
        for copy, layer in zip(copies[: len(layers)], layers, strict=True)
    ]


def takes_copy(product: str, weight: Tensor) -> bool:
    """Whether a product is computed through a copy; see `copied_weights.choose_product`.

    Never in a program that is exported: it would need this package's operations where it runs.
    """
    kind = weight.device.type
    asked = product in ('copied', 'kept') or (product == 'auto' and kind != 'cpu')
    return asked and kind != 'meta' and not _is_exporting()


def may_keep_copy(product: str, weight: Tensor) -> bool:
    """Whether a copy that stays between forwards may be taken (`kept_copies`).

    Not by a program that torch makes of a forward: it would not see that the copy is written.
    """
    asked = product in ('auto', 'kept') and weight.device.type == 'cpu'
    return asked and not is_traced()


def _is_exporting() -> bool:
    return bool(_ask_exporting and _ask_exporting())


def is_traced() -> bool:
    """Whether torch makes a program of what runs."""
    return torch.compiler.is_compiling() or _is_exporting()


def is_remade(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the copy of a weight is made again in the backward, so that none is kept.

    A base in half precision or in int8 is there to save memory. One in fp32 is four bytes an entry
    beside copies of two: autocast keeps them likewise.
    """
    return is_int8(weight) or (weight.dtype == dtype and weight.element_size() < 4)
