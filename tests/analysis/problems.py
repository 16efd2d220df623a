"""Synthetic runs: concentrated scores, a plan, kept masks, learnt factors; every method's plan."""

from __future__ import annotations

import json

import torch

from cdra_mm.core import find_targets, make_plan
from cdra_mm.core.artifacts.state_keys import adapter_prefix
from cdra_mm.methods import METHODS, Request, make_method
from cdra_mm.mm.planning.kept_scores import selected_masks, write_kept
from tests.models import TinyViT

# What a tiny model needs to get anything by.
SETTINGS = {
    'cdra': dict(gamma=0.2, rank_rule='count'),
    'spt_lora': dict(rank=2, budget_percent=20.0),
    'spt_adapter': dict(rank=2, budget_percent=20.0),
    'gps': dict(loss='task'),
    'lora': dict(rank=2),
    'soma': dict(rank=2),
    'dora': dict(rank=2),
    'mona': dict(bottleneck=2),
    'adapter': dict(bottleneck=2),
    'vpt_shallow': dict(num_prompts=2),
    'vpt_deep': dict(num_prompts=2),
}
# Of these a backbone alone gives no plan: full has none, noah trains a supernet first.
WITHOUT_PLAN = {'full', 'noah'}
PLANNED = sorted(set(METHODS) - WITHOUT_PLAN)


def scores_of(layers, width, seed=0):
    """Scores whose large entries lie in few rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {'attn.qkv.weight:' + part: (width, width) for part in 'qkv'}
    shapes |= {'attn.proj.weight': (width, width)}
    shapes |= {
        'ffn.layers.0.0.weight': (2 * width, width),
        'ffn.layers.1.weight': (width, 2 * width),
    }
    scores = {}
    for i in range(layers):
        for name, (high, wide) in shapes.items():
            row, col = (torch.rand(side, generator=generator) ** 4 for side in (high, wide))
            noise = torch.rand(high, wide, generator=generator)
            scores[f'layers.{i}.{name}'] = row[:, None] * col * noise * (1 + i % 3)
        scores[f'layers.{i}.ln1.weight'] = torch.rand(width, generator=generator) ** 4
    return scores


def write_run(folder, layers=4, width=16, seed=0, keep=True, summary=None):
    """A work directory with a plan and, if asked, masks and a summary; gives scores and plan."""
    scores = scores_of(layers, width, seed)
    plan = make_plan(scores, gamma=0.05, rank_rule='count')
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'cdra_plan.json').write_text(plan.to_json())
    if keep:
        write_kept(folder / 'cdra_scores.safetensors', scores, selected_masks(plan, scores))
    if summary is not None:
        (folder / 'summary.json').write_text(json.dumps(summary))
    return scores, plan


def learnt(plan, seed=0):
    """Random factors for the low-rank adapters of a plan, by their names in a state dict."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for block in plan.blocks:
        prefix = adapter_prefix(block.name)
        factors[prefix + 'up'] = torch.randn(len(block.rows), block.rank, generator=generator)
        factors[prefix + 'down'] = torch.randn(block.rank, len(block.cols), generator=generator)
    return factors


def plan_of_method(name):
    """The plan of a method for a tiny backbone."""
    backbone = TinyViT()
    generator = torch.Generator().manual_seed(0)
    scores = {
        target: torch.rand(found.shape, generator=generator)
        for target, found in find_targets(backbone).items()
    }
    method = make_method({'type': name, **SETTINGS.get(name, {})})
    return method.plan(Request(backbone, scores if method.needs_scores else {}))
