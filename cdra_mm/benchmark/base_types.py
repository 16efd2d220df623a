"""A training step over a frozen base of each type that it can be kept in: time, and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from cdra_mm.core import quantize_base
from cdra_mm.core.adapters.small_base import base_bytes
from cdra_mm.sizing.block_sizes import label, make_block_plan

from . import compared_models as models
from .candidates import Candidates
from .case import Case
from .memory import in_child, kept_bytes, peak_above_rest
from .peers import quiet
from .step import Step

__all__ = ['BASES', 'compare_bases']

REFERENCE = 'fp32'
ADAMW = 2  # moments of each trained number


@dataclass(frozen=True)
class Base:
    """How a base is kept.

    Attributes:
        kept: ``'float32'``, ``'bfloat16'`` or ``'int8'``.
        autocast: Whether products are in bfloat16.
    """

    kept: str
    autocast: bool = False


BASES = {
    REFERENCE: Base('float32'),
    'int8': Base('int8'),
    'fp32, autocast': Base('float32', autocast=True),
    'bf16, autocast': Base('bfloat16', autocast=True),
    'int8, autocast': Base('int8', autocast=True),
}


def compare_bases(case: Case, *, blocks: Sequence[str] = ('paper', 'spt')) -> dict[str, Any]:
    """Times of a training step, bytes of its weights, and what it takes at its peak.

    Args:
        case: The setting; its number type is that of each base.
        blocks: Block sizes of ours, see `make_block_plan`; the first counts.
    """
    compared = Candidates(case, 'bases', {'fp32': REFERENCE}, blocks=[label(blocks[0])])
    compared.record['dtype'] = 'fp32 and bf16'
    with quiet():
        steps: dict[str, Step] = {}
        for name in BASES:
            with compared.fitting(name):
                step = steps[name] = _step(case, name, blocks[0])
                compared.found[name] = {'weight_bytes': base_bytes(step.model)}
        compared.time(steps)
        for name in list(compared.found):
            with compared.fitting(name):
                own = compared.found[name]
                # On a CPU only a fresh process tells: there is no allocator to ask.
                peak: int | None = in_child(_peak_alone, case, name, blocks[0])
                own['peak_bytes_above_rest'] = peak
                own['kept_bytes'] = kept_bytes(steps[name].model)
                trained = sum(p.nbytes for p in steps[name].model.parameters() if p.requires_grad)
                own['optimizer_bytes'] = ADAMW * trained
                if peak is not None:
                    held = own['weight_bytes'] + own['kept_bytes'] + own['optimizer_bytes']
                    own['total_bytes'] = held + peak
    return compared.record


def _step(case: Case, name: str, block: str) -> Step:
    base = BASES[name]
    case = replace(case, dtype='bf16' if base.autocast else 'fp32')
    plain = case.make_model()
    plan = make_block_plan(plain, block, seed=case.seed)
    if base.kept == 'bfloat16':
        _narrow(plain, torch.bfloat16)
    model = models.ours(plain, plan, case.seed)
    if base.kept == 'int8':
        quantize_base(model)
    return Step(case, model, case.make_batch())


def _narrow(model: nn.Module, dtype: torch.dtype) -> None:
    """The matrices that are quantised in another type; everything else stays in fp32."""
    for path in models.linear_paths(model):
        weight = model.get_submodule(path).get_parameter('weight')
        weight.data = weight.data.to(dtype)


def _peak_alone(case: Case, name: str, block: str) -> int | None:
    if case.threads:
        torch.set_num_threads(case.threads)
    with quiet():
        return peak_above_rest(_step(case, name, block), case.device)
