"""Adapter: a small bottleneck after the FFN of every block.

Houlsby et al., *Parameter-Efficient Transfer Learning for NLP*, ICML 2019 (two bottlenecks a
block, after the attention's and the FFN's projection, before the residual is added); Pfeiffer
et al., *AdapterFusion*, EACL 2021 (the one after the FFN suffices). The row "Adapter" of the
tables for vision is the latter with 8 hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdra_mm.core import (
    CallAdapter,
    ConfigError,
    Part,
    Plan,
    PlanError,
    Target,
    find_blocks,
    find_targets,
    register_kind,
)
from cdra_mm.core.low_rank import master_dtype

__all__ = ['AdapterTuning', 'Bottleneck']

FFN_OUTPUTS = ('fc2', 'w3')  # roles of the last matrix of a plain and of a gated FFN


@register_kind
class Bottleneck(CallAdapter):
    """``y + up(gelu(down(y)))`` on the output of a linear layer.

    Both maps have biases. It does not merge: the activation stands between them.

    Args:
        module: The linear layer.
        width: Length of its output y.
        bottleneck: Hidden units h; `down` is ``[h, width]``, `up` ``[width, h]``.
    """

    kind = 'bottleneck'
    tensors = frozenset({'down', 'down_bias', 'up', 'up_bias'})
    can_merge = False

    def __init__(self, module: nn.Module, width: int, bottleneck: int) -> None:
        super().__init__()
        if not isinstance(module, nn.Linear) or module.out_features != width:
            raise ValueError(f'expected a linear layer with {width} outputs, found {module}')
        like = module._parameters['weight']
        assert like is not None

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=like.device, dtype=master_dtype(like)))

        self.down, self.down_bias = parameter(bottleneck, width), parameter(bottleneck)
        self.up, self.up_bias = parameter(width, bottleneck), parameter(width)

    @staticmethod
    def count(width: int, bottleneck: int) -> int:
        """Its parameters, ``2 h E + h + E``."""
        return 2 * width * bottleneck + bottleneck + width

    @classmethod
    def sizes_of(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `Adapter.sizes_of`."""
        if tensors['down'].dim() != 2:
            raise ValueError('down is no matrix')
        bottleneck, width = tensors['down'].shape
        return {'width': width, 'bottleneck': bottleneck}

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """``down`` Kaiming-uniform (a = sqrt 5), the rest zero: it starts as the identity."""
        values = torch.rand(self.down.shape, generator=generator) * 2 - 1
        self.down.copy_(values / math.sqrt(self.down.shape[1]))
        for zero in (self.down_bias, self.up, self.up_bias):
            zero.zero_()

    def call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """See `CallAdapter.call`."""
        y: Tensor = forward(*args, **kwargs)
        down, down_bias, up, up_bias = (
            p.to(y.dtype) for p in (self.down, self.down_bias, self.up, self.up_bias)
        )
        return y + F.linear(F.gelu(F.linear(y, down, down_bias)), up, up_bias)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        bottleneck, width = self.down.shape
        return f'width={width}, bottleneck={bottleneck}'


@dataclass(frozen=True)
class AdapterTuning:
    """The row "Adapter": a `Bottleneck` on the last linear layer of every block's FFN.

    That is after the FFN and before the residual is added, in every family: timm,
    mmpretrain and mmseg add the residual (after dropout and drop-path) outside
    that layer. The released code of VPT and of SPT has it at the same place. With
    layer scale (DINOv2, BEiT) the scale comes after the bottleneck, as it comes after
    the FFN: the bottleneck is part of the branch.

    Decided where sources differ: Houlsby et al. draw both matrices near zero; SPT's code draws
    `down` and sets `up` to zero; VPT's code sets *all* of it to zero, with which nothing but
    the last bias ever gets a gradient. Here `up` and the biases start at zero.

    It does not merge into plain weights: inference needs it, and costs its two products.

    Attributes:
        bottleneck: Hidden units h.
    """

    name: ClassVar[str] = 'adapter'
    needs_scores: ClassVar[bool] = False

    bottleneck: int = 8

    def __post_init__(self) -> None:
        if type(self.bottleneck) is not int or self.bottleneck < 1:
            raise ConfigError(f'bottleneck={self.bottleneck!r}: expected a count of at least 1')

    def plan(
        self,
        backbone: nn.Module,
        scores: Mapping[str, Tensor] | None,
        *,
        also_train: Mapping[str, int],
        settings: Mapping[str, Any],
        fingerprint: str,
    ) -> Plan | None:
        """One bottleneck a block, nothing else. See `Method.plan`.

        Raises:
            PlanError: If a block has no FFN that is seen.
        """
        return Plan(
            method=self.name,
            parts=tuple(self._part(target) for target in _ffn_outputs(backbone)),
            settings={**settings, 'bottleneck': self.bottleneck},
            fingerprint=fingerprint,
        )

    def _part(self, target: Target) -> Part:
        sizes = {'width': target.shape[0], 'bottleneck': self.bottleneck}
        name = f'{target.module}.{Bottleneck.kind}'
        return Part(name, Bottleneck.kind, sizes, Bottleneck.count(**sizes))


def _ffn_outputs(backbone: nn.Module) -> list[Target]:
    """The last matrix of every block's FFN."""
    outputs = [target for target in find_targets(backbone).values() if target.role in FFN_OUTPUTS]
    for block in find_blocks(backbone):
        found = [target for target in outputs if f'{target.module}.'.startswith(f'{block}.')]
        if len(found) != 1:
            raise PlanError(
                f'{block} has {len(found)} matrices that end an FFN ({", ".join(FFN_OUTPUTS)}): '
                'expected one to put a bottleneck on'
            )
    return outputs
