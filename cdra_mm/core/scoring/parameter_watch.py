"""Sees each use of a competing parameter and puts a scored operation in its place.

A ``TorchFunctionMode`` watches the functions that torch is called with, so it does
not matter which module holds a weight or whether its ``forward`` is called. A
new kind of use is one handler here; a parameter that is used without one, or twice,
is left alone and scored by `one_by_one`: slower, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cdra_mm.errors import ScoreError

from ..model.attention import attend
from .scored_ops import scored_layer_norm, scored_linear, scored_scale
from .square_sink import Shift, SquareSink

__all__ = ['NotInOnePass', 'ParameterWatch']


class NotInOnePass(ScoreError):
    """A use of a parameter that no scored operation covers."""


class ParameterWatch(TorchFunctionMode):
    """Replaces each use of a competing parameter by its scored operation.

    Args:
        names: Key of ``sink.sums`` by ``id`` of the parameter.
        sink: Where the squares go.

    Attributes:
        alone: Names of parameters that are left to `one_by_one`, with the reason.
        complete: Whether all of them were known when this forward began.
        used: Names of those that scored operations have used in this forward.
    """

    def __init__(self, names: dict[int, str], sink: SquareSink) -> None:
        super().__init__()
        self.names, self.sink = names, sink
        self.alone: dict[str, str] = {}
        self.complete = True
        self.anchor = torch.zeros((), requires_grad=True)
        self.used: set[str] = set()
        self.views: dict[int, tuple[nn.Parameter, Tensor]] = {}
        self.joins: dict[int, tuple[tuple[Shift, ...], Tensor]] = {}

    def begin(self) -> None:
        """Starts a new forward."""
        self.complete = True
        self.used.clear()
        self.views.clear()
        self.joins.clear()
        self.anchor = torch.zeros((), requires_grad=True, device=self.sink.sums.device)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        names = [n for value in _flat((*args, *kwargs.values())) for n in self.names_of(value)]
        if not names:
            return func(*args, **kwargs)
        handler = _HANDLERS.get(func)
        known = next((name for name in names if name in self.alone), '')
        if handler is not None and not known:
            try:
                out = handler(self, *args, **kwargs)
                if out is not NotImplemented:
                    return out
            except NotInOnePass as error:
                self.leave(names, str(error))
        out = func(*args, **kwargs)
        # Several results, as of chunk, are as much a use as one.
        used = any(isinstance(part, Tensor) and part.requires_grad for part in _flat((out,)))
        if used and not isinstance(out, nn.Parameter):
            # An ordinary operation gives all its parameters ordinary gradients.
            by = getattr(func, '__name__', func)
            self.leave(names, f'used with {known}' if known else f'used by {by}')
        return out

    def leave(self, names: Iterable[str], reason: str) -> None:
        """Leaves parameters to `one_by_one`, from the next forward on."""
        for name in names:
            if name not in self.alone:
                self.alone[name] = reason
                self.complete = False

    def names_of(self, value: Any) -> tuple[str, ...]:
        """The names of the competing parameters that a value is, or is joined from."""
        if not isinstance(value, Tensor):
            return ()
        if id(value) in self.joins:
            return tuple(shift.name for shift in self.joins[id(value)][0])
        name = self.name(value)
        return (name,) if name else ()

    def name(self, value: Any) -> str:
        """The name of a competing parameter, '' for anything else."""
        return self.names.get(id(self.origin(value)), '')

    def origin(self, value: Any) -> Any:
        """The parameter that a noted view shows, or the value itself."""
        return self.views[id(value)][0] if id(value) in self.views else value

    def note_view(self, parameter: nn.Parameter, view: Tensor) -> Tensor:
        """Remembers a reshaped vector (a layer scale does that before it multiplies)."""
        self.views[id(view)] = (parameter, view)  # held, so that its id stays its own
        return view

    def note_join(self, shifts: tuple[Shift, ...], joined: Tensor) -> Tensor:
        """Remembers a bias that was put together from several vectors."""
        self.joins[id(joined)] = (shifts, joined)
        return joined

    def use(self, *values: Any) -> list[str]:
        """The names of the values, each noted as used once in this forward."""
        if any(id(value) in self.joins for value in values):
            raise NotInOnePass('used otherwise than in a bias')
        found = [self.name(value) for value in values]
        for name, value in zip(found, values, strict=True):
            if not name:
                self._refuse_computed(value)
        for name in filter(None, found):
            self._mark(name)
        return found

    def use_bias(self, bias: Any) -> tuple[Shift, ...]:
        """The competing vectors that a bias consists of, each noted as used once."""
        if id(bias) in self.joins:
            shifts = self.joins[id(bias)][0]
            for shift in shifts:
                self._mark(shift.name)
            return shifts
        return tuple(Shift(name) for name in self.use(bias) if name)

    def _refuse_computed(self, value: Any) -> None:
        """A scored operation gives what stands in a weight's place no gradient to pass on."""
        if isinstance(value, Tensor) and value.grad_fn is not None:
            raise NotInOnePass('used together with a weight or bias that is computed')

    def _mark(self, name: str) -> None:
        if name in self.used:
            # The squares of its uses do not add up to the square of its gradient.
            raise NotInOnePass('used twice in one forward')
        self.used.add(name)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


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


_HANDLERS: dict[Any, Callable[..., Any]] = {
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
