"""Sees each use of a competing parameter and puts a scored operation in its place.

A ``TorchFunctionMode`` watches the functions that torch is called with, so it does
not matter which module holds a weight or whether its ``forward`` is called. A
new kind of use is one handler here; a use without one is an error, never a
wrong score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .attention import attend
from .errors import ScoreError
from .scored_ops import SquareSink, scored_layer_norm, scored_linear, scored_scale

__all__ = ['ParameterWatch']


class ParameterWatch(TorchFunctionMode):
    """Replaces each use of a competing parameter by its scored operation.

    Args:
        names: Key of ``sink.sums`` by ``id`` of the parameter.
        sink: Where the squares go.
    """

    def __init__(self, names: dict[int, str], sink: SquareSink) -> None:
        super().__init__()
        self.names, self.sink = names, sink
        self.anchor = torch.zeros((), requires_grad=True)
        self.used: set[str] = set()
        self.views: dict[int, tuple[nn.Parameter, Tensor]] = {}

    def begin(self) -> None:
        """Starts a new batch."""
        self.used.clear()
        self.views.clear()
        device = next(iter(self.sink.sums.values())).device if self.sink.sums else None
        self.anchor = torch.zeros((), requires_grad=True, device=device)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None:
            out = handler(self, *args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.requires_grad:
            for value in _flat((*args, *kwargs.values())):
                name = self.name(value)
                if name and not isinstance(out, nn.Parameter):
                    raise ScoreError(
                        f'{name} is used by {getattr(func, "__name__", func)}, which cannot be '
                        'scored exactly: leave it out of `targets`, or add an operation to '
                        'cdra_mm/core/parameter_watch.py'
                    )
        return out

    def name(self, value: Any) -> str:
        """The name of a competing parameter or a view of one, '' for anything else."""
        return self.names.get(id(self.origin(value)), '') if isinstance(value, Tensor) else ''

    def origin(self, value: Tensor) -> Tensor:
        """The parameter that a noted view shows, or the value itself."""
        return self.views[id(value)][0] if id(value) in self.views else value

    def note_view(self, parameter: nn.Parameter, view: Tensor) -> Tensor:
        """Remembers a reshaped vector (a layer scale does that before it multiplies)."""
        self.views[id(view)] = (parameter, view)  # held, so that its id stays its own
        return view

    def use(self, *values: Any) -> list[str]:
        """The names of the values, each noted as used once in this batch."""
        found = [self.name(value) for value in values]
        for name in filter(None, found):
            if name in self.used:
                raise ScoreError(
                    f'{name} is used twice in one forward: the squares of its uses do not add up '
                    'to the square of its gradient; leave shared weights out of `targets`'
                )
            self.used.add(name)
        return found


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _linear(watch: ParameterWatch, input: Tensor, weight: Tensor, bias: Any = None) -> Any:
    weight_name, bias_name = watch.use(weight, bias)
    if not (weight_name or bias_name):
        return NotImplemented
    return scored_linear(watch.anchor, input, weight, bias, watch.sink, weight_name, bias_name)


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
    uses = (in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias)
    if not any(watch.name(p) for p in uses):
        return NotImplemented
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
            raise ScoreError(f'nn.MultiheadAttention with {what} cannot be scored exactly')
    in_w, in_b, out_w, out_b = watch.use(*uses)
    width = embed_dim_to_check
    projected = []
    same = key is query and value is query
    for i, tokens in enumerate((query,) if same else (query, key, value)):
        rows = slice(None) if same else slice(i * width, (i + 1) * width)
        x = tokens.transpose(0, 1)
        bias = None if in_proj_bias is None else in_proj_bias.detach()[rows]
        weight = in_proj_weight.detach()[rows]
        projected.append(scored_linear(watch.anchor, x, weight, bias, watch.sink, in_w, in_b, rows))
    q, k, v = projected[0].chunk(3, dim=-1) if same else projected
    # Dropout is off: scoring runs in evaluation mode.
    average = kwargs.get('average_attn_weights', True)
    out, weights = attend(q, k, v, num_heads, need_weights=need_weights, average_weights=average)
    out = scored_linear(watch.anchor, out, out_proj_weight, out_proj_bias, watch.sink, out_w, out_b)
    return out.transpose(0, 1), weights


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    torch.mul: _multiply,
    Tensor.mul: _multiply,
    Tensor.mul_: _multiply,
    Tensor.__mul__: _multiply,
    Tensor.__rmul__: _multiply,
    Tensor.view: _reshape,
    Tensor.reshape: _reshape,
    F.multi_head_attention_forward: _attention,
}
