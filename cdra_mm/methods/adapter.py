"""Adapter: a small bottleneck after the FFN of every block.

Houlsby et al., *Parameter-Efficient Transfer Learning for NLP*, ICML 2019 (two bottlenecks a
block, after the attention's and the FFN's projection, before the residual is added); Pfeiffer
et al., *AdapterFusion*, EACL 2021 (the one after the FFN suffices). The row "Adapter" of the
tables for vision is the latter with 8 hidden units.

VPT's code (KMnP/vpt) trains this row by SGD with momentum 0.9, the rate and weight decay of a grid
for each task, keeps the frozen encoder in evaluation mode (no dropout, no drop path) and starts the
head's bias at -4.6. Here it is trained as all rows are (docs/methods.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from cdra_mm.core import Plan, Target, find_layers, find_targets
from cdra_mm.errors import PlanError
from cdra_mm.settings import count

from .base import Method, Request
from .bottleneck import bottleneck_parts

__all__ = ['AdapterTuning']

FFN_OUTPUTS = ('fc2', 'w3')  # roles of the last matrix of a plain and of a gated FFN


@dataclass(frozen=True)
class AdapterTuning(Method):
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

    bottleneck: int = count(8)

    def plan(self, request: Request) -> Plan | None:
        """One bottleneck a block, nothing else. See `Method.plan`.

        Raises:
            PlanError: If a block has no FFN that is seen.
        """
        allowed = request.targets()
        outputs = [target for target in _ffn_outputs(request.backbone) if target.name in allowed]
        if not outputs:
            raise PlanError(
                f'no matrix that ends an FFN of {type(request.backbone).__name__} may be trained: '
                'use another method for this backbone'
            )
        parts = bottleneck_parts(request.backbone, outputs, self.bottleneck)
        return request.record(self, parts=tuple(parts))


def _ffn_outputs(backbone: nn.Module) -> list[Target]:
    """The last matrix of every block's FFN."""
    outputs = [target for target in find_targets(backbone).values() if target.role in FFN_OUTPUTS]
    for block in find_layers(backbone):
        found = [target for target in outputs if f'{target.module}.'.startswith(f'{block}.')]
        if len(found) != 1:
            raise PlanError(
                f'{block} has {len(found)} matrices that end an FFN ({", ".join(FFN_OUTPUTS)}): '
                'expected one to put a bottleneck on'
            )
    return outputs
