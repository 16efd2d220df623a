"""Inference with merged adapters beside the base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from cdra_mm.core import merge_adapters
from cdra_mm.sizing.block_sizes import label, make_block_plan

from . import compared_models as models
from .candidates import Candidates
from .case import Batch, Case
from .compared_models import Builder
from .peers import quiet

__all__ = ['compare_inference', 'forward_of']

REFERENCE = 'base'


def compare_inference(
    case: Case, *, blocks: Sequence[str] = ('paper', 'spt'), peers: Sequence[str] = ('peft',)
) -> dict[str, Any]:
    """Times of a forward without gradients.

    Args:
        case: The setting.
        blocks: Block sizes of ours, see `make_block_plan`.
        peers: ``'peft'`` adds its LoRA, not merged, where it is installed.
    """
    compared = Candidates(case, 'inference', {'base': REFERENCE}, blocks=list(blocks))
    with quiet():
        plain = case.make_model()
        builders: dict[str, Builder] = {REFERENCE: lambda model: model}
        for kind in blocks:
            plan = make_block_plan(plain, kind, seed=case.seed)
            ours = partial(models.ours, plan=plan, seed=case.seed)
            builders[f'ours {label(kind)} merged'] = partial(_merged, ours)
            builders[f'ours {label(kind)} unmerged'] = ours
        for name, build in models.peft_builders(peers, compared.skipped).items():
            builders[f'{name} unmerged'] = build
        runs: dict[str, Callable[[], Any]] = {}
        batch = case.make_batch()
        for name, build in builders.items():
            with compared.fitting(name):
                runs[name] = forward_of(case, build(case.make_model()).eval(), batch)
        compared.time(runs)
    return compared.record


def _merged(adapt: Builder, model: nn.Module) -> nn.Module:
    model = adapt(model)
    merge_adapters(model)
    return model


def forward_of(case: Case, model: nn.Module, batch: Batch) -> Callable[[], Any]:
    """A forward of a batch, without gradients, in the precision of the setting."""

    @torch.no_grad()
    def run() -> None:
        with case.autocast():
            model(batch[0])

    return run
