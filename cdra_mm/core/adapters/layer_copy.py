"""The copy of a weight with its update, which an adapted product goes through (`copied_linear`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..model.row_int8 import is_int8
from .block_ops import adapted_copies
from .joint_blocks import JointBlocks

__all__ = [
    'Copy',
    'Layer',
    'arguments_of',
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
    with torch.no_grad():
        copies = adapted_copies(*arguments_of(layers), dtype)
    rest = iter(copies[len(layers) :])
    return [
        Copy(copy, None if layer.bias is None else next(rest))
        for copy, layer in zip(copies[: len(layers)], layers, strict=True)
    ]


def arguments_of(
    layers: Sequence[Layer],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[int], list[float]]:
    """What `block_ops.adapted_copies` is told of layers: weights, biases, factors and so on."""
    return (
        [layer.weight for layer in layers],
        [layer.bias for layer in layers if layer.bias is not None],
        [factor for layer in layers for factor in layer.factors],
        [index for layer in layers for index in layer.joint.indices],
        [len(layer.joint.scales) for layer in layers],
        [scale for layer in layers for scale in layer.joint.scales],
    )


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
