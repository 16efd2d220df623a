"""Partial: the last blocks are trained whole, the others are frozen.

The row "Partial-1" of VPT (Jia et al., ECCV 2022, after Yosinski et al., NeurIPS 2014) and of
the papers after it.

VPT's code (KMnP/vpt) trains its rows by SGD with momentum 0.9, the rate and weight decay of a grid
for each task, keeps the frozen encoder in evaluation mode (no dropout, no drop path) and starts the
head's bias at -4.6. Here it is trained as all rows are (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from cdra_mm.core import Plan, find_layers
from cdra_mm.errors import PlanError
from cdra_mm.settings import count

from .base import Method, Request

__all__ = ['Partial']

# What a backbone calls a norm that stands before its blocks, beside those behind them.
BEFORE_BLOCKS = ('pre_norm', 'pre_ln', 'norm_pre')


@dataclass(frozen=True)
class Partial(Method):
    """The rows "Partial-k".

    The norms behind the blocks are trained too, as VPT's code does it (its ``encoder_norm``;
    two parameters a channel). A backbone that norms each layer it returns, as Swin does, has
    several of them. Layers between the last blocks, as Swin's between two stages, stay frozen;
    VPT's code for Swin trains them for some k. Nothing has to be merged.

    Attributes:
        num_blocks: k.
    """

    name: ClassVar[str] = 'partial'

    num_blocks: int = count(1)

    def plan(self, request: Request) -> Plan | None:
        """The last blocks that may be trained and the norms behind them. See `Method.plan`.

        Raises:
            PlanError: If the backbone has fewer blocks.
        """
        backbone = request.backbone
        blocks = request.layers()
        if len(blocks) < self.num_blocks:
            raise PlanError(
                f'num_blocks={self.num_blocks}: {type(backbone).__name__} has {len(blocks)} '
                'transformer blocks' + (' that may be trained' if request.withheld else '')
            )
        last = [backbone.get_submodule(path) for path in blocks[-self.num_blocks :]]
        modules = (*last, *_norms(backbone, find_layers(backbone)))
        trained = {id(p) for module in modules for p in module.parameters()}
        return request.record(
            self,
            also_train={
                name: parameter.numel()
                for name, parameter in request.parameters().items()
                if id(parameter) in trained
            },
        )


def _norms(backbone: nn.Module, blocks: list[str]) -> Iterator[nn.Module]:
    """The norms behind the blocks: children of the modules that the blocks lie in."""
    owners = {''}
    for path in blocks:
        while path := path.rpartition('.')[0]:
            owners.add(path)
    for owner in sorted(owners - set(blocks)):
        for name, child in backbone.get_submodule(owner).named_children():
            if isinstance(child, nn.LayerNorm | nn.RMSNorm) and name not in BEFORE_BLOCKS:
                yield child
