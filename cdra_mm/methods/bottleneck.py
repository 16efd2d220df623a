"""The bottleneck: a small trained perceptron on the output of a linear layer.

    y' = y + up gelu(down drop(y) + b) + c          down [h, E], up [E, h]

`adapter` puts it after the FFN, `spt_adapter` after the output of any matrix that its
scores choose. Where q, k and v are one fused layer, the bottlenecks of its parts are slices
of one adapter, each on its own outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear  # of nn.MultiheadAttention

from cdra_mm.core import CallAdapter, Part, Target, register_kind
from cdra_mm.core.adapters.low_rank import master_dtype
from cdra_mm.core.model.families import families_of
from cdra_mm.errors import PlanError

__all__ = ['Bottleneck', 'bottleneck_parts']


@register_kind
class Bottleneck(CallAdapter):
    """Bottlenecks on n slices of the output of a linear layer; mostly one on all of it.

    It does not merge: the activation stands between its two maps, which both have biases.

    Args:
        module: The linear layer.
        width: Outputs of each slice, E.
        bottleneck: Hidden units h; `down` is ``[n h, E]``, `up` ``[n E, h]``.
        starts: First output of each slice, in order, as text: ``'0'``, ``'0 768'``.
        dropout: Probability of dropping an input in training.
    """

    kind = 'bottleneck'
    can_merge = False

    def __init__(
        self,
        module: nn.Module,
        width: int,
        bottleneck: int,
        starts: str = '0',
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Linear):
            raise ValueError(f'{type(module).__name__} is no linear layer')
        self.slices = [(start, start + width) for start in map(int, starts.split())]
        ends = [0, *(end for _, end in self.slices)]
        fits = self.slices and width > 0 and bottleneck > 0 and ends[-1] <= module.out_features
        if not fits or any(start < end for (start, _), end in zip(self.slices, ends, strict=False)):
            raise ValueError(f'slices of {width} outputs at {starts} of {module.out_features}')
        if not 0 <= dropout < 1:
            raise ValueError(f'dropout is {dropout}')
        like, number = module.weight, len(self.slices)
        self.dropout = float(dropout)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=like.device, dtype=master_dtype(like)))

        self.down = parameter(number * bottleneck, width)
        self.down_bias = parameter(number * bottleneck)
        self.up, self.up_bias = parameter(number * width, bottleneck), parameter(number * width)

    @staticmethod
    def count(width: int, bottleneck: int) -> int:
        """Parameters of one, ``2 h E + h + E``."""
        return 2 * width * bottleneck + bottleneck + width

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """``down`` Kaiming-uniform (a = sqrt 5), the rest zero: it starts as the identity."""
        values = torch.rand(self.down.shape, generator=generator, device=generator.device) * 2 - 1
        self.down.copy_(values / math.sqrt(self.down.shape[1]))
        for zero in (self.down_bias, self.up, self.up_bias):
            zero.zero_()

    def call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """See `CallAdapter.call`."""
        y: Tensor = forward(*args, **kwargs)
        number = len(self.slices)
        factors = (self.down, self.down_bias, self.up, self.up_bias)
        each = zip(*(p.to(y.dtype).chunk(number) for p in factors), strict=True)
        pieces, at = [], 0
        for (start, end), (down, down_bias, up, up_bias) in zip(self.slices, each, strict=True):
            piece = y[..., start:end]
            dropped = F.dropout(piece, self.dropout, self.training)
            hidden = F.gelu(F.linear(dropped, down, down_bias))
            pieces += [y[..., at:start], piece + F.linear(hidden, up, up_bias)]
            at = end
        if self.slices == [(0, y.shape[-1])]:
            return pieces[1]  # nothing to put together
        return torch.cat([*pieces, y[..., at:]], -1)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        number, (width, bottleneck) = len(self.slices), (self.down.shape[1], self.up.shape[1])
        return f'{number} of {width} -> {bottleneck} -> {width}'


def bottleneck_parts(
    backbone: nn.Module, targets: Iterable[Target], bottleneck: int, dropout: float = 0.0
) -> Iterator[Part]:
    """The records of bottlenecks after these matrices, one for each layer.

    Raises:
        PlanError: If a matrix is used by code that never calls a layer.
    """
    by_layer: dict[str, list[Target]] = {}
    for target in targets:
        _check_called(backbone, target)
        by_layer.setdefault(target.module, []).append(target)
    for path, slices in by_layer.items():
        slices = sorted(slices, key=lambda target: target.start)
        width = slices[0].shape[0]
        sizes = {
            'width': width,
            'bottleneck': bottleneck,
            'starts': ' '.join(str(target.start) for target in slices),
            'dropout': float(dropout),
        }
        kind = Bottleneck.kind
        name = f'{path}.{kind}' if path else kind
        yield Part(name, kind, sizes, len(slices) * Bottleneck.count(width, bottleneck))


def _check_called(backbone: nn.Module, target: Target) -> None:
    """Raises PlanError where the product with a matrix is made outside of its layer."""
    layer = backbone.get_submodule(target.module)
    owner = backbone.get_submodule(target.module.rpartition('.')[0])
    called = isinstance(layer, nn.Linear) and not isinstance(layer, NonDynamicallyQuantizableLinear)
    if called and target.part:
        # An attention with a bias of its own joins it to the product that it makes itself.
        roles = (role for family in families_of(owner) for role in family.vectors.values())
        called = 'bias' not in roles
    if not called:
        raise PlanError(
            f'{target.name}: {type(owner if isinstance(layer, nn.Linear) else layer).__name__} '
            'reads this weight without calling a layer, so nothing can follow its output: use '
            'lora or spt_lora on this backbone'
        )
