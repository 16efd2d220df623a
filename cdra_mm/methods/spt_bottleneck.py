"""The module of SPT-Adapter: a bottleneck after the output of a matrix.

    y' = y + expand gelu(squeeze drop(y) + b) + c          squeeze [w, O], expand [O, w]

He et al. (ICCV 2023) put it after q, k, v and both layers of the FFN; beside the
attention's output their code puts it on the input instead, which only a square matrix
allows. Here it follows the output everywhere.

Their q, k and v are layers of their own. Where they are one fused layer, the bottlenecks
of its parts are slices of one adapter, each on its own outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear  # of nn.MultiheadAttention

from cdra_mm.core import CallAdapter, Part, PlanError, Target, register_kind
from cdra_mm.core.families import families_of
from cdra_mm.core.low_rank import master_dtype

__all__ = ['OutputBottlenecks', 'bottleneck_params', 'bottleneck_parts']


@register_kind
class OutputBottlenecks(CallAdapter):
    """Bottlenecks on slices of the output of a linear layer.

    Args:
        module: The linear layer.
        starts: First output of each slice, in order, as text: ``'0'``, ``'0 768'``.
        height: Outputs of each slice, O.
        width: Of each bottleneck, w.
        dropout: Probability of dropping an input in training.
    """

    kind = 'output_bottlenecks'
    tensors = frozenset({'starts', 'drop_rate', 'squeeze', 'squeeze_bias', 'expand', 'expand_bias'})
    can_merge = False

    starts: Tensor
    drop_rate: Tensor

    def __init__(
        self, module: nn.Module, starts: str, height: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Linear):
            raise ValueError(f'{type(module).__name__} is no linear layer')
        self.slices = [(start, start + height) for start in map(int, starts.split())]
        ends = [0, *(end for _, end in self.slices)]
        fits = self.slices and height > 0 and width > 0 and ends[-1] <= module.out_features
        if not fits or any(start < end for (start, _), end in zip(self.slices, ends, strict=False)):
            raise ValueError(f'slices of {height} outputs at {starts} of {module.out_features}')
        if not 0 <= dropout < 1:
            raise ValueError(f'dropout is {dropout}')
        self.dropout = float(dropout)
        weight = module.weight
        options: dict[str, Any] = dict(device=weight.device, dtype=master_dtype(weight))
        number = len(self.slices)
        # A state dict has to tell these.
        at = torch.tensor([start for start, _ in self.slices], device=weight.device)
        self.register_buffer('starts', at)
        self.register_buffer(
            'drop_rate', torch.tensor(self.dropout, dtype=torch.float64, device=weight.device)
        )
        self.squeeze = nn.Parameter(torch.zeros(number, width, height, **options))
        self.squeeze_bias = nn.Parameter(torch.zeros(number, width, **options))
        self.expand = nn.Parameter(torch.zeros(number, height, width, **options))
        self.expand_bias = nn.Parameter(torch.zeros(number, height, **options))

    @classmethod
    def sizes_of(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `Adapter.sizes_of`."""
        if tensors['squeeze'].dim() != 3 or tensors['starts'].dim() != 1:
            raise ValueError('squeeze is no stack of matrices')
        return {
            'starts': ' '.join(map(str, tensors['starts'].tolist())),
            'height': tensors['squeeze'].shape[2],
            'width': tensors['squeeze'].shape[1],
            'dropout': float(tensors['drop_rate']),
        }

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """As a new ``nn.Linear`` the squeeze, zero the expand: nothing is added at first."""
        bound = 1 / math.sqrt(self.squeeze.shape[2])
        for parameter in (self.squeeze, self.squeeze_bias):
            values = torch.rand(parameter.shape, generator=generator) * 2 - 1
            parameter.copy_(values * bound)
        self.expand.zero_()
        self.expand_bias.zero_()

    def call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `CallAdapter.call`."""
        y = forward(*args, **kwargs)
        pieces, at = [], 0
        for i, (start, end) in enumerate(self.slices):
            piece = y[..., start:end]
            pieces += [y[..., at:start], piece + self._change(i, piece)]
            at = end
        return torch.cat([*pieces, y[..., at:]], -1)

    def _change(self, i: int, y: Tensor) -> Tensor:
        dropped = F.dropout(y, self.dropout, self.training)
        hidden = F.linear(dropped, self.squeeze[i].to(y.dtype), self.squeeze_bias[i].to(y.dtype))
        hidden = F.gelu(hidden)
        return F.linear(hidden, self.expand[i].to(y.dtype), self.expand_bias[i].to(y.dtype))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        number, width, height = self.squeeze.shape
        return f'{number} of {height} -> {width} -> {height}'


def bottleneck_params(height: int, width: int) -> int:
    """Parameters of the bottleneck on `height` outputs."""
    return 2 * height * width + width + height


def bottleneck_parts(
    backbone: nn.Module, targets: Iterable[Target], width: int, dropout: float
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
        height = slices[0].shape[0]
        sizes = {
            'starts': ' '.join(str(target.start) for target in slices),
            'height': height,
            'width': width,
            'dropout': float(dropout),
        }
        kind = OutputBottlenecks.kind
        name = f'{path}.{kind}' if path else kind
        yield Part(name, kind, sizes, len(slices) * bottleneck_params(height, width))


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
            'spt_lora on this backbone'
        )
