"""The adapted product through a copy of the weight that holds the update (Eq. 6).

    y = x W'^T + b,   W' = round(W + sum_i scale_i * scatter_{R_i, C_i}(up_i down_i))

W' is in the type that the product is computed in, and all layers' are made together, once a
forward (`copied_weights`): what autocast does with a frozen weight at every product, with the
update written in. So forward and input gradient are one ordinary product each. An update is lost in
the rounding no more than in mixed-precision fine-tuning, which rounds its fp32 weights likewise.

    G_i = dy[:, R_i]^T x[:, C_i],   ddown_i = scale_i up_i^T G_i,   dup_i = scale_i G_i down_i^T

Few launches is what this is made for: on a GPU they, and passes over the activations, are what
an adapter costs. `compact_linear` is made for a CPU, where arithmetic costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.row_int8 import is_int8
from .block_ops import adapted_copies, factor_gradients
from .compact_linear import autocast_type, columns_apart, columns_of, length_of, scaled
from .joint_blocks import JointBlocks

__all__ = [
    'Copy',
    'Layer',
    'copied_linear',
    'copy_layers',
    'is_remade',
    'takes_copy',
]

# Beyond it a block's gradient, |R| |C| products a token, costs more than the four skinny products
# through its factors. By arithmetic for an H100 (both are then about 20 us for 6,000 tokens), not
# measured.
LARGEST_BLOCK = 2**19
# Products that are made in vain where the blocks of a fused layer are multiplied as one, over
# what a launch of its own costs (about 2 us): tokens times entries outside of the blocks.
WASTED_PRODUCTS = 5e8


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

    @property
    def sources(self) -> list[Tensor]:
        """The tensors that its copy is made of; not a bias that is itself computed."""
        bias = [self.bias] if isinstance(self.bias, nn.Parameter) else []
        return [self.weight, *bias, *self.factors]


class Copy(NamedTuple):
    """What a layer is multiplied by, in the type of the product.

    Attributes:
        weight: The weight with its updates, ``[O, I]``.
        bias: ``[O]`` or None.
        sources: `Layer.sources` that it was made of.
        versions: How often each had been written to in place then.
    """

    weight: Tensor
    bias: Tensor | None
    sources: list[Tensor]
    versions: list[int]

    def serves(self, layer: Layer, dtype: torch.dtype) -> bool:
        """Whether a layer can be multiplied in a type by this, made before.

        Not where the layer's tensors have been replaced or written to since: by ``functional_call``
        within the model's forward, or after one that was interrupted and could not clean up.
        """
        if self.weight.dtype != dtype or self.weight.device != layer.weight.device:
            return False
        sources = layer.sources
        if len(sources) != len(self.sources):
            return False
        if any(one is not other for one, other in zip(sources, self.sources, strict=True)):
            return False
        if torch.compiler.is_compiling():  # what follows would not be traced
            return True
        if self.weight.is_inference() and not torch.is_inference_mode_enabled():
            return False  # autograd would not take it
        return self.versions == _versions(sources)


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    if torch.compiler.is_compiling():
        return []
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
        Copy(
            copy,
            None if layer.bias is None else next(rest),
            layer.sources,
            _versions(layer.sources),
        )
        for copy, layer in zip(copies, layers, strict=False)
    ]


def takes_copy(product: str, weight: Tensor) -> bool:
    """Whether a product is computed through a copy; see `copied_weights.choose_product`.

    Never in a program that is exported: it would need this package's operations where it runs.
    """
    kind = weight.device.type
    asked = product == 'copied' or (product == 'auto' and kind != 'cpu')
    return asked and kind != 'meta' and not _is_exporting()


def _is_exporting() -> bool:
    ask = getattr(torch.compiler, 'is_exporting', None)  # not in torch 2.6
    return bool(ask and ask())


def copied_linear(x: Tensor, layer: Layer, copy: Copy | None = None) -> Tensor:
    """``F.linear`` with the weight's compact adapters (CDRA-SPT, Eq. 6).

    Args:
        x: ``[..., I]``.
        layer: Weight, bias, blocks and factors. The weight gets no gradient.
        copy: A `Copy` made before; another is made here where that does not serve.

    Returns:
        ``[..., O]``. Under autocast in the autocast type, as ``F.linear``.
    """
    under_autocast = autocast_type(x)
    if under_autocast is None and x.dtype != layer.weight.dtype:
        return F.linear(x, layer.weight, layer.bias)  # which refuses it
    dtype = under_autocast or x.dtype
    with torch.autocast(x.device.type, enabled=False):
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        if copy is None or not copy.serves(layer, dtype):
            copy = copy_layers([layer], dtype)[0]
        y: Tensor = _CopiedLinear.apply(
            flat, layer.weight, layer.bias, copy[:2], tuple(layer.joint), *layer.factors
        )
    return y.reshape(*x.shape[:-1], layer.weight.shape[0])


def is_remade(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the copy of a weight is made again in the backward, so that none is kept.

    A base in half precision or in int8 is there to save memory. One in fp32 is four bytes an entry
    beside copies of two: autocast keeps them likewise.
    """
    return is_int8(weight) or (weight.dtype == dtype and weight.element_size() < 4)


class _CopiedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        weight, bias, (copy, bias_copy), blocks, *factors = rest
        joint = JointBlocks(*blocks)
        ctx.joint, ctx.remade = joint, is_remade(weight, x.dtype)
        ctx.bias_type = None if bias is None else bias.dtype
        whole = length_of(joint.cols) >= x.shape[1]  # kept as it is where that is less
        x_c = x if whole else columns_apart(x, joint.cols)
        ctx.save_for_backward(weight if ctx.remade else copy, x_c, *factors)
        return F.linear(x, copy, bias_copy)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, x_c, *factors = ctx.saved_tensors
        joint: JointBlocks = ctx.joint
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            if ctx.remade:
                weight = copy_layers([Layer(weight, None, joint, factors)], dy.dtype)[0].weight
            dx = dy @ weight
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(0, dtype=ctx.bias_type)
        grads: Sequence[Tensor | None] = [None] * len(factors)
        if any(ctx.needs_input_grad[5:]):
            if length_of(joint.cols) >= weight.shape[1]:
                x_c = columns_of(x_c, joint.cols)
            grads = _gradients(columns_of(dy, joint.rows), x_c, joint, factors)
        return dx, None, dbias, None, None, *grads


def _gradients(
    dy_r: Tensor, x_c: Tensor, joint: JointBlocks, factors: list[Tensor]
) -> list[Tensor]:
    """Of all factors, from the rows of dy ``[T, sum |R|]`` and columns of x ``[T, sum |C|]``."""
    heights, widths = list(joint.heights), list(joint.widths)
    if max(h * w for h, w in zip(heights, widths, strict=True)) > LARGEST_BLOCK:
        return _through_factors(dy_r, x_c, joint, factors)
    wasted = sum(heights) * sum(widths) - joint.size
    if len(dy_r) * wasted <= WASTED_PRODUCTS:
        whole = torch.split(dy_r.t() @ x_c, heights, 0)
        blocks = [torch.split(rows, widths, 1)[i] for i, rows in enumerate(whole)]
    else:
        parts = zip(torch.split(dy_r, heights, 1), torch.split(x_c, widths, 1), strict=True)
        blocks = [d.t() @ x for d, x in parts]
    return factor_gradients(blocks, factors, joint.scales)


def _through_factors(
    dy_r: Tensor, x_c: Tensor, joint: JointBlocks, factors: list[Tensor]
) -> list[Tensor]:
    grads = []
    parts = zip(
        torch.split(dy_r, list(joint.heights), 1),
        torch.split(x_c, list(joint.widths), 1),
        strict=True,
    )
    for i, (d, x) in enumerate(parts):
        down, up = factors[2 * i], factors[2 * i + 1]
        d_hidden = d @ scaled(up, joint.scales[i]).to(d.dtype)
        hidden = scaled(F.linear(x, down.to(d.dtype)), joint.scales[i])
        grads += [(d_hidden.t() @ x).to(down.dtype), (d.t() @ hidden).to(up.dtype)]
    return grads
