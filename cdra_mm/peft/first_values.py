"""The adapters that a config asks for, with their first values, not yet on a model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from cdra_mm.core import Adapter, Plan
from cdra_mm.core.adapters.apply import (
    AdapterSlot,
    begin_at,
    build_adapter,
    planned_adapters,
)
from cdra_mm.core.adapters.entries import Entries

from .config import CdraConfig

__all__ = ['begin', 'delta_adapters']


def delta_adapters(model: nn.Module, plan: Plan) -> list[AdapterSlot]:
    """The adapters of a plan, with every vector and token as what is added to its entries.

    In the order of `slots_of`.
    """
    vectors = (
        replace(v, indices=tuple(range(v.length))) if v.indices is None else v for v in plan.vectors
    )
    slots = planned_adapters(model, replace(plan, vectors=tuple(vectors)))
    for name, numel in plan.also_train.items():
        index = torch.arange(numel, device='cpu')
        slots.append(build_adapter(model, name, Entries, dict(index=index)))
    return slots


def begin(plan: Plan, slots: list[AdapterSlot], config: CdraConfig) -> None:
    """Gives the adapters their first values."""
    generator = torch.Generator().manual_seed(config.seed)
    for _, _, adapter in slots:
        adapter.reset(generator)
    named = dict(zip([block.name for block in plan.blocks], slots, strict=False))
    begin_at(named, config.start or {})
    if not config.init_weights:
        for adapter in (adapter for _, _, adapter in slots):
            _draw(adapter, generator)


@torch.no_grad()
def _draw(adapter: Adapter, generator: torch.Generator) -> None:
    for parameter in adapter.parameters():
        device = generator.device
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, device=device))
