"""A frozen matrix in one byte an entry, which multiplies as if it were whole.

    W ~ codes * scales,   codes int8 [O, I] in -127 .. 127,   scales fp32 [O, 1],
    scale of a row = max |W| / 127,   codes = round(W / scale)

(symmetric, per output row: the usual weight-only int8.) `RowInt8` gives itself out as the fp32
tensor that it stands for. An operation that multiplies by it computes ``codes * scales`` for itself
and drops it again: what autograd keeps for the backward is int8, and a cast (autocast's) only notes
the type in which the product is computed.

A scale has 16 significant bits, so that every ``code * scale`` is exact in fp32. Therefore to
quantise once more what was quantised changes nothing, not one bit.

It knows which tensor it was made of, by a digest: tables and fingerprints of a base in int8 are
those of the base in full precision (`digests`), which the scores are of and a merge goes into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from cdra_mm.errors import PlanError

from .tensor_digest import digest_of

__all__ = ['RowInt8', 'is_int8', 'quantize']

LARGEST = 127
SIGNIFICANT = 16  # bits of a scale: with 7 of a code there are fewer than fp32's 24
# Of a row of zeros; where scales had fewer bits than that, nothing would be exact.
LEAST_SCALE = 2.0**-100

aten: Any = torch.ops.aten


def quantize(weight: Tensor, origin: str = '') -> RowInt8:
    """A matrix in int8.

    Args:
        weight: fp32 ``[O, I]``.
        origin: Its `digest_of`, where it is known already.
    """
    weight = weight.detach()
    return RowInt8(*_quantized(weight), torch.float32, [origin or digest_of(weight)])


def _quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix."""
    scales = weight.abs().amax(1, keepdim=True).div_(LARGEST).clamp_(min=LEAST_SCALE)
    mantissa, exponent = torch.frexp(scales)
    scales = torch.ldexp(torch.round(mantissa * 2**SIGNIFICANT) / 2**SIGNIFICANT, exponent)
    codes = (weight / scales).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return codes, scales


def is_int8(tensor: Tensor | None) -> bool:
    """Whether a parameter is kept in int8."""
    return isinstance(tensor, RowInt8)


class RowInt8(Tensor):
    """A frozen matrix in int8, see above; or a view of one.

    Attributes:
        codes: int8, of this tensor's shape.
        scales: fp32; broadcasts over `codes`.
        is_view: Whether it is a part of another, or one turned round: then nothing can be written
            to it.
    """

    codes: Tensor
    scales: Tensor
    is_view: bool
    _origin: list[str]

    @staticmethod
    def __new__(
        cls,
        codes: Tensor,
        scales: Tensor,
        dtype: torch.dtype,
        origin: list[str],
        is_view: bool = False,
    ) -> RowInt8:
        """See `quantize`; `origin` is one list for all that share memory."""
        make = cast(Any, Tensor)._make_wrapper_subclass
        self: RowInt8 = make(
            cls, codes.shape, strides=codes.stride(), dtype=dtype, device=codes.device
        )
        self.codes, self.scales, self.is_view = codes, scales, is_view
        self._origin = origin
        return self

    @property
    def origin(self) -> str:
        """`digest_of` the fp32 tensor that it was made of."""
        return self._origin[0]

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes that it takes."""
        return self.codes.nbytes + self.scales.nbytes

    def whole(self) -> Tensor:
        """What it stands for, a new plain tensor of its type."""
        codes, scales = self.codes, self.scales
        for dim, stride in enumerate(codes.stride()):
            if not stride and self.is_view:  # the same values again and again
                codes = codes.narrow(dim, 0, 1)
                scales = scales.narrow(dim, 0, 1)
        exact = torch.promote_types(self.dtype, torch.float32)
        return codes.to(exact).mul_(scales).to(self.dtype).expand(self.shape)

    def requires_grad_(self, requires_grad: bool = True) -> RowInt8:
        """Refuses to be trained: steps of training are smaller than those of int8."""
        if requires_grad:
            raise PlanError(
                f'a weight of {list(self.shape)} is kept in int8 and cannot be trained: leave it '
                'out of what is trained, or call cdra_mm.core.restore_base first'
            )
        return cast(RowInt8, super().requires_grad_(False))

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f'RowInt8(shape={list(self.shape)}, dtype={self.dtype}, device={self.device})'

    def become(self, values: Tensor) -> None:
        """Becomes what a tensor of its shape says, as ``copy_`` does.

        Raises:
            PlanError: If it is a view.
        """
        if self.is_view:
            raise PlanError(
                'a part of a weight that is kept in int8 cannot be written to: write the whole '
                'weight, or call cdra_mm.core.restore_base first'
            )
        if isinstance(values, RowInt8):
            codes, scales, origin = values.codes, values.scales, values.origin
        elif torch.equal(values, self.whole()):
            return  # written back as it was, by an average for example
        else:
            exact = values.float()
            (codes, scales), origin = _quantized(exact), digest_of(exact)
        self.codes.copy_(codes)
        self.scales.copy_(scales)
        self._origin[0] = origin

    # What `nn.Module.to` and torch.compile take it apart by.
    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ['codes', 'scales'], (self.dtype, self.origin, self.is_view)

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], rest: Any, *_: Any) -> RowInt8:
        dtype, origin, is_view = rest
        return RowInt8(inner['codes'], inner['scales'], dtype, [origin], is_view)

    __torch_function__ = cast(Any, torch._C)._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        kept = _KEPT.get(func) if args and isinstance(args[0], RowInt8) else None
        found = kept(func, *args, **kwargs) if kept is not None else None
        return _on_whole(func, args, kwargs) if found is None else found


def _on_whole(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operation on plain tensors; what it writes to is quantised again."""
    stand_ins: dict[int, Tensor] = {}
    shape_only = func.overloadpacket in _SHAPE_ONLY

    def stand_in(value: Any) -> Any:
        if not isinstance(value, RowInt8):
            return value
        if id(value) not in stand_ins:
            nothing = value.scales.new_empty((), dtype=value.dtype)
            stand_ins[id(value)] = nothing.expand(value.shape) if shape_only else value.whole()
        return stand_ins[id(value)]

    out = func(*tree_map(stand_in, args), **tree_map(stand_in, kwargs))
    if not func._schema.is_mutable:
        return out
    owners: dict[int, RowInt8] = {}
    for at, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        for owner in tree_leaves(args[at] if at < len(args) else kwargs.get(argument.name)):
            if isinstance(owner, RowInt8):
                owner.become(stand_ins[id(owner)])
                owners[id(stand_ins[id(owner)])] = owner
    return tree_map(lambda value: owners.get(id(value), value), out)


def _aliased(_: Any, weight: RowInt8) -> RowInt8:
    parts = weight.codes.detach(), weight.scales.detach()
    return RowInt8(*parts, weight.dtype, weight._origin, weight.is_view)


def _viewed(func: Any, weight: RowInt8, *args: Any, **kwargs: Any) -> Any:
    """A part of it, or it in another order; None where memory does not allow that."""
    try:
        codes = func(weight.codes, *args, **kwargs)
        scales = func(weight.scales.expand_as(weight.codes), *args, **kwargs)
    except RuntimeError:
        return None
    if isinstance(codes, Tensor):
        return RowInt8(codes, scales, weight.dtype, weight._origin, True)
    pairs = zip(codes, scales, strict=True)
    return [RowInt8(*pair, weight.dtype, weight._origin, True) for pair in pairs]


def _cast(func: Any, weight: RowInt8, **kwargs: Any) -> RowInt8 | None:
    """Another type is noted, another device moved to; as whole numbers it becomes plain."""
    dtype = kwargs.pop('dtype', None) or weight.dtype
    if not dtype.is_floating_point:
        return None
    kwargs.pop('memory_format', None)
    codes, scales = func(weight.codes, **kwargs), func(weight.scales, **kwargs)
    return RowInt8(codes, scales, dtype, [weight.origin], weight.is_view)


def _copied(_: Any, weight: RowInt8, values: Tensor, *__: Any) -> RowInt8:
    weight.become(values if values.shape == weight.shape else values.expand(weight.shape))
    return weight


# Operations whose result is in int8 again.
_KEPT: dict[Any, Callable[..., Any]] = {
    aten.detach.default: _aliased,
    aten.alias.default: _aliased,
    aten.clone.default: _cast,
    aten._to_copy.default: _cast,
    aten.copy_.default: _copied,
    **dict.fromkeys(
        (
            aten.t.default,
            aten.transpose.int,
            aten.permute.default,
            aten.expand.default,
            aten.unsqueeze.default,
            aten.squeeze.dim,
            aten.view.default,
            aten.slice.Tensor,
            aten.select.int,
            aten.split.Tensor,
            aten.split_with_sizes.default,
            aten.unbind.int,
        ),
        _viewed,
    ),
}
# What asks for shape, type and device alone.
_SHAPE_ONLY = {
    getattr(aten, name)
    for name in (
        'new_empty new_empty_strided new_full new_ones new_zeros empty_like full_like ones_like '
        'zeros_like rand_like randn_like'
    ).split()
}

# Without it no checkpoint that holds one could be read where only tensors are allowed.
torch.serialization.add_safe_globals([RowInt8])
