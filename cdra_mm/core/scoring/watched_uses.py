"""The ways in which a competing parameter may be used, each with its scored operation.

A handler gets the arguments of the function that it stands for. It gives what that would give, or
``NotImplemented`` where no competing parameter has a part in it. A new kind of use is one handler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.attention import attend
from .parameter_watch import Handler, NotInOnePass, ParameterWatch
from .scored_ops import scored_layer_norm, scored_linear, scored_scale
from .square_sink import Shift

__all__ = ['HANDLERS']


def _linear(watch: ParameterWatch, input: Tensor, weight: Tensor, bias: Any = None) -> Any:
    (weight_name,), shifts = watch.use(weight), watch.use_bias(bias)
    if not (weight_name or shifts):
        return NotImplemented
    return scored_linear(watch.anchor, input, weight, bias, watch.sink, weight_name, shifts)


def _layer_norm(
    watch: ParameterWatch,
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    scale_name, shift_name = watch.use(weight, bias)
    if not (scale_name or shift_name):
        return NotImplemented
    return scored_layer_norm(
        watch.anchor, input, weight, bias, eps, watch.sink, scale_name, shift_name
    )


def _rms_norm(
    watch: ParameterWatch,
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    eps: Any = None,
) -> Any:
    if not watch.name(weight) or len(normalized_shape) != 1:
        return NotImplemented
    normed = F.rms_norm(input, normalized_shape, None, eps)
    return scored_scale(watch.anchor, normed, weight, watch.sink, *watch.use(weight))


def _multiply(watch: ParameterWatch, input: Any, other: Any) -> Any:
    for x, scale in ((input, other), (other, input)):
        if not (watch.name(scale) and isinstance(x, Tensor)):
            continue
        vector = watch.origin(scale)
        axes = [axis - scale.dim() for axis, size in enumerate(scale.shape) if size > 1] or [-1]
        if vector.dim() != 1 or len(axes) != 1 or x.dim() < scale.dim():
            return NotImplemented
        (name,) = watch.use(scale)
        x = x.movedim(axes[0], -1)
        out = scored_scale(watch.anchor, x, vector, watch.sink, name)
        return out.movedim(-1, axes[0])
    return NotImplemented


def _reshape(watch: ParameterWatch, input: Any, *shape: Any, **kwargs: Any) -> Any:
    if not (isinstance(input, nn.Parameter) and watch.name(input) and input.dim() == 1):
        return NotImplemented
    out = input.view(*shape) if shape else input.view(*kwargs.values())
    return watch.note_view(input, out)


def _join(watch: ParameterWatch, tensors: Any, dim: Any = 0, **kwargs: Any) -> Any:
    """``torch.cat`` of vectors into a bias: BEiT's of query and value, with zeros for the key."""
    if kwargs or any(tensor.dim() != 1 or id(tensor) in watch.joins for tensor in tensors):
        return NotImplemented
    shifts, start = [], 0
    for tensor in tensors:
        if watch.name(tensor):
            shifts.append(Shift(watch.name(tensor), slice(start, start + len(tensor))))
        start += len(tensor)
    return watch.note_join(tuple(shifts), torch.cat(tuple(tensors), dim))


def _attention(
    watch: ParameterWatch,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    **kwargs: Any,
) -> Any:
    """``F.multi_head_attention_forward`` (inputs ``[T, B, E]``) with scored projections."""
    odd = {
        'a 2-D query': query.dim() != 3,
        'key and value biases': bias_k is not None or bias_v is not None,
        'add_zero_attn': add_zero_attn,
        'separate projection weights': use_separate_proj_weight,
        'key_padding_mask': key_padding_mask is not None,
        'attn_mask': attn_mask is not None,
        'is_causal': bool(kwargs.get('is_causal')),
    }
    for what, given in odd.items():
        if given:
            raise NotInOnePass(f'used by nn.MultiheadAttention with {what}')
    in_w, in_b, out_w = watch.use(in_proj_weight, in_proj_bias, out_proj_weight)
    out_shifts = watch.use_bias(out_proj_bias)
    width = embed_dim_to_check
    projected = []
    same = key is query and value is query
    for i, tokens in enumerate((query,) if same else (query, key, value)):
        rows = slice(None) if same else slice(i * width, (i + 1) * width)
        x = tokens.transpose(0, 1)
        bias = None if in_proj_bias is None else in_proj_bias.detach()[rows]
        weight = in_proj_weight.detach()[rows]
        shifts = (Shift(in_b, rows=rows),) if in_b else ()
        projected.append(
            scored_linear(watch.anchor, x, weight, bias, watch.sink, in_w, shifts, rows)
        )
    q, k, v = projected[0].chunk(3, dim=-1) if same else projected
    # Dropout is off: scoring runs in evaluation mode.
    average = kwargs.get('average_attn_weights', True)
    out, weights = attend(q, k, v, num_heads, need_weights=need_weights, average_weights=average)
    out = scored_linear(
        watch.anchor, out, out_proj_weight, out_proj_bias, watch.sink, out_w, out_shifts
    )
    return out.transpose(0, 1), weights


HANDLERS: dict[Any, Handler] = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.cat: _join,
    torch.concat: _join,
    torch.mul: _multiply,
    Tensor.mul: _multiply,
    Tensor.mul_: _multiply,
    Tensor.__mul__: _multiply,
    Tensor.__rmul__: _multiply,
    Tensor.view: _reshape,
    Tensor.reshape: _reshape,
    F.multi_head_attention_forward: _attention,
}
