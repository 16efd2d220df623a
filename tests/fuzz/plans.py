"""Plans of every kind of record on one tiny model, and what a valid one is."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import torch
from torch import nn

from cdra_mm.core import Plan, estimate_scores, fingerprint
from cdra_mm.methods import METHODS, Request, make_method
from tests.models import TinyViT, images, losses

LARGEST = (1 << 63) - 1
CONFIGS: list[dict[str, Any]] = [
    dict(type='cdra', gamma=0.05, rank_rule='count'),
    dict(type='cdra', gamma=0.01, min_rank=0),
    dict(type='lora', rank=2, dropout=0.1),
    dict(type='spt_lora', gamma=0.1, rank=2),
    dict(type='spt_adapter', gamma=0.2, rank=2),
    dict(type='gps', loss='task'),
    dict(type='rlrr'),
    dict(type='adapter', bottleneck=2),
    dict(type='vpt_shallow', num_prompts=3),
    dict(type='vpt_deep', num_prompts=2, dropout=0.1),
    dict(type='apla', partial_size=3),
    dict(type='soma', rank=2),
    dict(type='dora', rank=2),
    dict(type='mona', bottleneck=2),
    dict(type='bias'),
    dict(type='linear'),
]


@cache
def model() -> nn.Module:
    """The model of all plans; to be copied, not changed."""
    torch.manual_seed(5)
    return TinyViT(drop=0.0).eval()


@cache
def plans() -> tuple[Plan, ...]:
    """One plan of each config."""
    scores = estimate_scores(model(), [images(4)], losses)
    found = []
    for config in CONFIGS:
        method = make_method(config)
        settings = {'scored': True, 'list': [1, None, 0.5], 'text': 'é'}
        also = {'cls_token': 8} if config['type'] in ('cdra', 'spt_lora') else {}
        own = scores if METHODS[config['type']].needs_scores else {}
        plan = method.plan(
            Request(model(), own, also, settings, fingerprint(model()) if own else '')
        )
        found.append(plan)
    # Without a fingerprint a damaged plan comes further.
    return (*found, *(dataclasses.replace(plan, fingerprint='') for plan in found))


def is_valid(record: dict[str, Any]) -> bool:
    """Whether a plan's JSON record says nothing impossible; slow and plain."""

    def count(value: Any, least: int, most: int = LARGEST) -> bool:
        return type(value) is int and least <= value <= most

    def indices(values: Any, size: int) -> bool:
        return all(count(value, 0, size - 1) for value in values) and len(set(values)) == len(
            values
        )

    def block(entry: dict[str, Any], least: int) -> bool:
        height, width = entry['shape']
        return (
            count(height, 1)
            and count(width, 1)
            and indices(entry['rows'], height)
            and indices(entry['cols'], width)
            and count(entry['rank'], least, min(len(entry['rows']), len(entry['cols'])))
            and min(len(entry['rows']), len(entry['cols'])) > 0
            and count(entry['num_sensitive'], 0, height * width)
            and 0 < entry['scale'] < float('inf')
            and 0 <= entry['dropout'] < 1
        )

    def vector(entry: dict[str, Any]) -> bool:
        chosen = entry['indices']
        return (
            count(entry['length'], 1)
            and (chosen is None or (indices(chosen, entry['length']) and len(chosen) > 0))
            and count(entry['num_sensitive'], 0, entry['length'])
        )

    def sparse(entry: dict[str, Any]) -> bool:
        height, width = entry['shape']
        return count(height, 1) and count(width, 1) and indices(entry['indices'], height * width)

    groups = [record[key] for key in ('blocks', 'dropped', 'vectors', 'sparse', 'parts')]
    names = [entry['name'] for group in groups for entry in group] + list(record['also_train'])
    return (
        len(names) == len(set(names))
        and all(block(entry, 1) for entry in record['blocks'])
        and all(block(entry, 0) for entry in record['dropped'])
        and all(vector(entry) for entry in record['vectors'])
        and all(sparse(entry) for entry in record['sparse'])
        and all(count(entry['num_params'], 1) for entry in record['parts'])
        and all(count(value, 0) for value in record['also_train'].values())
        and count(record['num_competing'], 0)
        and count(record['num_sensitive'], 0, record['num_competing'])
    )
