"""How the ratios change with depth, tokens, batch and the adapted share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from cdra_mm.core import Plan
from cdra_mm.sizing.block_sizes import KINDS, drawn_plan

from . import compared_models as models
from .arguments import MODELS
from .case import Case
from .steady_scores import ONE_MORE, compare_steady_scores
from .step import REFERENCE, Builder, compare_steps

__all__ = ['AXES', 'Point', 'compare_growth', 'points']


@dataclass(frozen=True)
class Point:
    """One value on one axis.

    Attributes:
        axis: What changes.
        value: Its value.
        case: The setting.
        scale: Factor of the paper's block sizes.
        share: Share of the matrices that are models.
    """

    axis: str
    value: str
    case: Case
    scale: float = 1.0
    share: float = 1.0


# Batches that take minutes on a CPU, and that fill a GPU.
AXES: dict[str, dict[str, tuple[Any, ...]]] = {
    device: {'model': MODELS, 'image_size': (224, 384, 512), 'batch': batches}
    for device, batches in {'cpu': (1, 4, 8), 'cuda': (8, 32, 128)}.items()
}
SAVED = 'adapter_saved_bytes_ratio_vs_peft_lora'
SCALES, SHARES = (0.5, 1.0, 2.0), (0.25, 0.5, 1.0)


def points(case: Case, axes: dict[str, tuple[Any, ...]] | None = None) -> Iterator[Point]:
    """The settings to measure, around the given one."""
    for axis, values in (axes or AXES[case.device]).items():
        for value in values:
            yield Point(axis, str(value), replace(case, **{axis: value}))
    for scale in SCALES:
        yield Point('block scale', f'{scale:g}', case, scale=scale)
    for share in SHARES:
        yield Point('adapted share', f'{share:.0%}', case, share=share)


def compare_growth(
    case: Case, *, scale: float = 1.0, share: float = 1.0, peers: tuple[str, ...] = ('peft',)
) -> dict[str, Any]:
    """The ratios of one setting: scores to one backward, step to the frozen base and to LoRA.

    Args:
        case: The setting.
        scale: Factor of the paper's block sizes.
        share: Share of the matrices that are models.
        peers: ``'peft'`` compares with its LoRA, where it is installed.
    """
    builders: dict[str, Builder] = {
        REFERENCE: models.frozen_limit,
        'ours': lambda model: models.ours(model, _plan(model, case, scale, share), case.seed),
    }
    skipped: dict[str, str] = {}
    builders |= models.peft_builders(peers, skipped)
    step = compare_steps(case, builders=builders)
    found = step['candidates'].get('ours', {})
    record = {'benchmark': 'growth', **case.describe(), 'scale': scale, 'share': share}
    record['trainable'] = found.get('trainable')
    for key in ('frozen_limit', 'peft_lora'):
        record[f'step_ratio_vs_{key}'] = found.get(f'ratio_vs_{key}')
    record[SAVED] = found.get(SAVED)
    skipped |= step['skipped']
    if scale == share == 1.0:  # the scores do not depend on the blocks
        scores = compare_steady_scores(case, memory=False)
        skipped |= scores['skipped']
        ours = scores['candidates'].get(ONE_MORE, {})
        record['scores_ratio_vs_backward'] = ours.get('ratio_vs_backward')
    return record | {'skipped': skipped}


def _plan(model: nn.Module, case: Case, scale: float, share: float) -> Plan:
    return drawn_plan(model, KINDS['paper'], seed=case.seed, scale=scale, share=share)
