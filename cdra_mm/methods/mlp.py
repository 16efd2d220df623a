"""MLP: a frozen backbone under a head of several layers.

The row "MLP-3" of VPT (Jia et al., ECCV 2022, Section 4.1).

VPT's code (KMnP/vpt) trains its rows by SGD with momentum 0.9, the rate and weight decay of a grid
for each task, keeps the frozen encoder in evaluation mode (no dropout, no drop path) and starts the
head's bias at -4.6. Here it is trained as all rows are (docs/methods.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdra_mm.core import CallAdapter, Part, Plan, find_layers, layer_width, register_kind
from cdra_mm.core.adapters.low_rank import master_dtype
from cdra_mm.errors import PlanError
from cdra_mm.settings import setting

from .base import Method, Request

__all__ = ['MLP', 'HiddenLayers']


@register_kind
class HiddenLayers(CallAdapter):
    """Linear layers with ReLU on the features that a backbone gives to its head.

    Features are vectors ``[B, E]``, tokens ``[B, N, E]`` or maps ``[B, E, H, W]``, of which every
    place is a vector, or lists of them, which share the layers. They do not merge.

    Args:
        module: The backbone.
        num_hidden: Layers.
        width: E, of input and output of every layer.
    """

    kind = 'hidden_layers'
    can_merge = False

    def __init__(self, module: nn.Module, num_hidden: int, width: int) -> None:
        super().__init__()
        if num_hidden < 1 or width != layer_width(module, find_layers(module)[-1]):
            raise ValueError(f'{num_hidden} layers of width {width}')
        like = next(module.parameters())

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=like.device, dtype=master_dtype(like)))

        self.hidden_weight = parameter(num_hidden, width, width)
        self.hidden_bias = parameter(num_hidden, width)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Weights normal with variance ``2 / E`` (He et al., ICCV 2015), biases zero."""
        values = torch.randn(self.hidden_weight.shape, generator=generator, device=generator.device)
        self.hidden_weight.copy_(values * math.sqrt(2 / self.hidden_weight.shape[-1]))
        self.hidden_bias.zero_()

    def call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `CallAdapter.call`."""
        return self._on(forward(*args, **kwargs))

    def _on(self, features: Any) -> Any:
        if isinstance(features, list | tuple):
            return type(features)(self._on(feature) for feature in features)
        width = self.hidden_bias.shape[1]
        shape = tuple(features.shape) if isinstance(features, Tensor) else ()
        axis = 1 if len(shape) == 4 else -1
        if len(shape) not in (2, 3, 4) or shape[axis] != width:
            raise PlanError(
                f'the backbone gives its head {shape or type(features).__name__}: an MLP needs '
                f'features [B, {width}], tokens [B, N, {width}] or maps [B, {width}, H, W]; choose '
                'the out_type or out_indices of the backbone by it'
            )
        x = features.movedim(axis, -1)
        for weight, bias in zip(self.hidden_weight, self.hidden_bias, strict=True):
            x = F.relu(F.linear(x, weight.to(x.dtype), bias.to(x.dtype)))
        return x.movedim(-1, axis)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        number, width = self.hidden_bias.shape
        return f'layers={number}, width={width}'


@dataclass(frozen=True)
class MLP(Method):
    """The rows "MLP-k": k - 1 hidden layers of the width of the tokens, then the task's own head.

    The paper says no more than that a perceptron of k layers replaces the linear head. Its
    code adds batch norm and dropout 0.1 behind every hidden layer; its count of parameters
    (1.35x of the backbone over 24 tasks) follows either way. They are left out here: batch
    statistics over the maps of dense prediction would be another thing than over class tokens.
    Initial weights are the code's, Kaiming-normal.

    In a classifier or segmentor the hidden layers belong to the head. Here they stand on the
    backbone's output, so that any head can follow: reports count them as trained parameters of
    the backbone, ``(k - 1) (E^2 + E)``. They do not merge.

    Attributes:
        num_layers: k, with the last linear layer of the head.
    """

    name: ClassVar[str] = 'mlp'
    trains_inside: ClassVar[bool] = False

    num_layers: int = setting(3, minimum=2, what='a count', note="one layer is the method 'linear'")

    def plan(self, request: Request) -> Plan | None:
        """Hidden layers on the output, nothing inside. See `Method.plan`.

        Raises:
            PlanError: If the backbone has no transformer block that tells its width.
        """
        backbone = request.backbone
        blocks = find_layers(backbone)
        if not blocks:
            raise PlanError(f'{type(backbone).__name__} has no transformer blocks')
        sizes = {'num_hidden': self.num_layers - 1, 'width': layer_width(backbone, blocks[-1])}
        count = sizes['num_hidden'] * (sizes['width'] + 1) * sizes['width']
        part = Part(HiddenLayers.kind, HiddenLayers.kind, sizes, count)
        return request.record(self, parts=(part,))
