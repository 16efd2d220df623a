"""RLRR: residual low-rank rescaling of every weight (Dong et al., CVPR 2024).

    W' = W + diag(s_out) W diag(s_in)        every matrix of the blocks
    b' = b + shift                           every bias of its linear layers
    y' = scale * y + shift                   the patch embedding and every norm

Everything merges into the plain weights. Where the released code (zstarN70/RLRR) and this
one differ, or the code has two ways:

- A fused qkv has an ``s_in`` for each of q, k and v, as in the code's ViT (288,768 trained
  parameters for ViT-B/16, the head aside); its Swin shares one.
- ``s_in [I]`` and ``s_out [O]`` are drawn Kaiming-uniform as ``[1, I]`` and ``[O, 1]``, as in
  the code: within sqrt(6 / I) and within sqrt 6. **The start is not the base model**: entries
  change by 2 / sqrt(I) of themselves (root mean square), the residual design notwithstanding.
- The scales and shifts of norms and patch embedding start at 1 and 0. The code adds noise of
  standard deviation 0.02, which it took over from SSF and which serves no purpose here.
- The code drops 0 to 30 % of the entries of what attention and FFN give (``nn.Dropout``, under the
  name drop path, growing with the depth), by data set, and starts the head at zero. It normalises
  images with mean and standard deviation 0.5 and trains in batches of 32 at a rate of 1e-3 to 1e-2
  (FGVC: 1e-4 to 3e-3) and a weight decay of 5e-5 or 5e-2, chosen for each task; it reports the best
  test epoch. On FGVC it trains on train and val, as ``--final`` does. Here backbone, head and
  training are those of every row (docs/methods.md).
- What has no bias gets no shift, because plain weights could not hold it. The code's models
  have all biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from cdra_mm.core import (
    CallAdapter,
    ParameterAdapter,
    Part,
    Plan,
    Target,
    find_targets,
    register_kind,
)
from cdra_mm.core.adapters.low_rank import master_dtype
from cdra_mm.errors import PlanError

from .base import Method, Request

__all__ = ['RLRR', 'Affine', 'Rescaling', 'Shift']


@register_kind
class Rescaling(ParameterAdapter):
    """``W' = W + diag(s_out) W diag(s_in)`` for a matrix.

    The product runs with the effective weight, as in the released code: its gradient ``[O, I]``
    is one product for both vectors, where two products without it (through ``x s_in`` and through
    ``dy s_out``) would cost a forward and a backward more. It lives for one layer at a time.

    Args:
        target: The matrix ``[O, I]``.
        like: Its parameter, which gives device and floating type.
    """

    kind = 'rescaling'

    def __init__(self, target: Target, like: Tensor) -> None:
        super().__init__(target.parameter)
        if len(target.shape) != 2:
            raise ValueError(f'{target.name} is no matrix')
        self.start, self.stop = target.start, target.stop
        new: dict[str, Any] = dict(device=like.device, dtype=master_dtype(like))
        self.scale_out = nn.Parameter(torch.zeros(target.shape[0], **new))
        self.scale_in = nn.Parameter(torch.zeros(target.shape[1], **new))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Kaiming-uniform, both away from zero: the start is not the base; see above."""
        for scale, fan_in in ((self.scale_out, 1), (self.scale_in, len(self.scale_in))):
            values = torch.rand(scale.shape, generator=generator, device=generator.device) * 2 - 1
            scale.copy_(values * math.sqrt(6 / fan_in))

    def added_to(self, base: Tensor) -> Tensor:
        """See `ParameterAdapter.added_to`."""
        changed = (base[self.start : self.stop] * self._factor()).to(base.dtype)
        if len(changed) == len(base):
            return changed
        return torch.slice_scatter(base, changed, 0, self.start, self.stop)

    @torch.no_grad()
    def merge_(self, module: nn.Module, sign: int = 1) -> None:
        """See `Adapter.merge_`: multiplies, or divides.

        Raises:
            PlanError: If the merged weight lost an entry, where ``1 + s_out s_in = 0``.
        """
        weight = cast(Tensor, module._parameters[self.parameter])[self.start : self.stop]
        factor = self._factor(torch.float64)
        if sign < 0:
            factor = _inverse(factor, f'{self.parameter}: 1 + s_out s_in')
        weight.copy_((weight.double() * factor).to(weight.dtype))
        self.merged = sign > 0

    def _factor(self, dtype: torch.dtype | None = None) -> Tensor:
        return 1 + torch.outer(self.scale_out.to(dtype), self.scale_in.to(dtype))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f'{self.parameter}, {len(self.scale_out)}x{len(self.scale_in)}'


@register_kind
class Shift(ParameterAdapter):
    """``b' = b + shift`` for a vector; trained apart from b, so that weight decay pulls to b.

    Args:
        target: The vector.
        like: Its parameter, which gives device and floating type.
    """

    kind = 'shift'
    trains_entries = True

    def __init__(self, target: Target, like: Tensor) -> None:
        super().__init__(target.parameter)
        if len(target.shape) != 1:
            raise ValueError(f'{target.name} is no vector')
        self.shift = nn.Parameter(
            torch.zeros(target.shape, device=like.device, dtype=master_dtype(like))
        )

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Zero."""
        self.shift.zero_()

    def added_to(self, base: Tensor) -> Tensor:
        """See `ParameterAdapter.added_to`."""
        return (base + self.shift).to(base.dtype)


@register_kind
class Affine(CallAdapter):
    """``y' = scale * y + shift`` by channel, after a norm or a convolution (SSF's operation).

    Args:
        module: An ``nn.LayerNorm`` over the last axis or an ``nn.Conv2d``; without a bias it gets
            no shift.
    """

    kind = 'affine'

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        weight = module._parameters.get('weight')
        if weight is None or not isinstance(module, nn.LayerNorm | nn.Conv2d):
            raise ValueError(f'{type(module).__name__} is no norm or convolution with a weight')
        self.is_convolution = isinstance(module, nn.Conv2d)
        new: dict[str, Any] = dict(device=weight.device, dtype=master_dtype(weight))
        self.scale = nn.Parameter(torch.ones(len(weight), **new))
        has_bias = module._parameters.get('bias') is not None
        self.shift = nn.Parameter(torch.zeros(len(weight), **new)) if has_bias else None

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """The identity."""
        self.scale.fill_(1)
        if self.shift is not None:
            self.shift.zero_()

    def call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `CallAdapter.call`."""
        y: Tensor = forward(*args, **kwargs)
        shape = (-1, 1, 1) if self.is_convolution else (-1,)
        scaled = y * self.scale.to(y.dtype).view(shape)
        return scaled if self.shift is None else scaled + self.shift.to(y.dtype).view(shape)

    @torch.no_grad()
    def merge_(self, module: nn.Module, sign: int = 1) -> None:
        """See `Adapter.merge_`.

        Raises:
            PlanError: If the merged weight lost a channel, where the scale is 0.
        """
        weight, bias = (module._parameters.get(name) for name in ('weight', 'bias'))
        scale = self.scale.double()
        if sign < 0:
            scale = _inverse(scale, f'{type(module).__name__}: scale')
        assert weight is not None
        wide = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
        weight.copy_(wide.to(weight.dtype))
        if bias is not None and self.shift is not None:
            shift = self.shift.double()
            wide = bias.double() * scale + shift if sign > 0 else (bias.double() - shift) * scale
            bias.copy_(wide.to(bias.dtype))
        self.merged = sign > 0


def _inverse(factor: Tensor, what: str) -> Tensor:
    lost = int((factor == 0).sum())
    if lost:
        raise PlanError(
            f'{what} is 0 in {lost} places: the merged weight does not hold the base there; load '
            'the checkpoint that is not merged'
        )
    return 1 / factor


@dataclass(frozen=True)
class RLRR(Method):
    """The row "RLRR" of the papers' tables; it has no setting."""

    name: ClassVar[str] = 'rlrr'

    def plan(self, request: Request) -> Plan | None:
        """Every matrix and bias of the blocks, every norm, the patch embedding.

        As in the released code tokens stay frozen: `Request.also_train` is not used.

        Raises:
            PlanError: If the backbone has no single convolution in front of its blocks.
        """
        backbone = request.backbone
        targets = request.targets()
        parts: list[Part] = []
        for path, module in _scaled(backbone, find_targets(backbone)):
            if f'{path}.weight' in request.withheld:
                continue
            numel = cast(Tensor, module.weight).shape[0]
            count = numel * (2 if module._parameters.get('bias') is not None else 1)
            parts.append(Part(f'{path}.affine'.lstrip('.'), Affine.kind, {}, count))
        for name, target in targets.items():
            if len(target.shape) == 2:
                parts.append(Part(name, Rescaling.kind, {}, sum(target.shape)))
            elif target.role == 'bias':
                parts.append(Part(name, Shift.kind, {}, target.numel))
        return request.record(self, parts=tuple(parts))


def _scaled(backbone: nn.Module, targets: Mapping[str, Target]) -> Iterator[tuple[str, nn.Module]]:
    """The patch embedding's convolution and every norm with a weight, with their paths."""
    first = next(iter(targets.values())).module
    before = [path for path, _ in backbone.named_modules()]
    in_front = set(before[: before.index(first)])
    convolutions = [
        path
        for path, module in backbone.named_modules()
        if path in in_front and isinstance(module, nn.Conv2d)
    ]
    if len(convolutions) != 1:
        raise PlanError(
            f'rlrr rescales the output of the patch embedding: expected one convolution before the '
            f'blocks of {type(backbone).__name__}, found {len(convolutions)}'
            + (f' ({", ".join(convolutions)})' if convolutions else '')
        )
    yield convolutions[0], backbone.get_submodule(convolutions[0])
    for path, module in backbone.named_modules():
        weight = module._parameters.get('weight')
        if isinstance(module, nn.LayerNorm) and weight is not None and weight.dim() == 1:
            yield path, module
