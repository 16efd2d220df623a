"""The masks that SPT released for a real ViT-B/16: what Eq. 7 makes of them (design D7)."""

from __future__ import annotations

import numpy
import pytest
import torch

from cdra_mm.core import Plan, plan_from_masks
from tests.reference.ranks import allowed

BUDGETS = ('b0.1', 'b0.4', 'b1.0')
MATRICES = {
    'caltech101': (44, 29, 28),
    'clevr_count': (50, 44, 43),
    'dtd': (47, 34, 27),
    'eurosat': (50, 37, 24),
}


def read(path, budget):
    """Masks of one task and budget by weight name."""
    masks = {}
    with numpy.load(path, allow_pickle=False) as archive:
        for key in archive.files:
            folder, _, name = key.partition('/')
            if folder != budget or name.startswith('__'):
                continue
            o, i, *indices = archive[key].tolist()
            mask = torch.zeros(o * max(i, 1), dtype=torch.bool)
            mask[indices] = True
            masks[name] = mask.reshape(o, i) if i else mask
    return masks


@pytest.fixture(scope='module')
def released(spt_masks):
    """Masks by (task, budget); the real thing, so their number is known."""
    found = {(path.stem, budget): read(path, budget) for path in spt_masks for budget in BUDGETS}
    assert len(found) == 12
    return found


def matrices(masks):
    return {name: mask for name, mask in masks.items() if mask.dim() == 2}


def test_eq7_drops_every_released_matrix(released):
    for key, masks in released.items():
        plan = plan_from_masks(masks)
        assert not plan.blocks, key
        assert {block.name for block in plan.dropped} == set(matrices(masks)), key
        assert plan.num_sensitive == sum(int(mask.sum()) for mask in masks.values())
        for block in plan.dropped:
            sizes = (block.num_sensitive, len(block.rows), len(block.cols))
            assert not allowed(1, *sizes, tuple(block.shape), 'eq7')


def test_count_adapts_most_released_matrices(released):
    """603 of all 2470 get rank 0 by this rule; over these four tasks a similar share."""
    adapted = dropped = 0
    for masks in released.values():
        plan = plan_from_masks(masks, rank_rule='count')
        adapted, dropped = adapted + len(plan.blocks), dropped + len(plan.dropped)
        assert sum(block.num_params for block in plan.blocks) <= plan.num_sensitive
        for block in (*plan.blocks, *plan.dropped):
            sizes = (block.num_sensitive, len(block.rows), len(block.cols))
            shape = tuple(block.shape)
            assert not block.rank or allowed(block.rank, *sizes, shape, 'count')
            assert not allowed(block.rank + 1, *sizes, shape, 'count')
    assert adapted + dropped == sum(len(matrices(masks)) for masks in released.values())
    assert 0.6 < adapted / (adapted + dropped) < 0.9


def test_released_blocks_hold_every_selected_entry(released):
    for masks in (released['eurosat', 'b0.4'], released['dtd', 'b0.1']):
        plan = plan_from_masks(masks, min_rank=1)
        assert len(plan.blocks) == len(matrices(masks)) and not plan.dropped
        for block in plan.blocks:
            mask = masks[block.name]
            inside = mask[list(block.rows)][:, list(block.cols)]
            assert int(inside.sum()) == int(mask.sum()) == block.num_sensitive
            assert block.rank == 1


def test_released_blocks_are_tall_and_narrow(released):
    """Near the 199 rows x 41 columns, 34 % dense, of all nineteen tasks."""
    blocks = [b for masks in released.values() for b in plan_from_masks(masks).dropped]
    assert 120 < sum(len(b.rows) for b in blocks) / len(blocks) < 300
    assert 20 < sum(len(b.cols) for b in blocks) / len(blocks) < 80
    assert 0.2 < sum(b.density for b in blocks) / len(blocks) < 0.5


def test_released_plan_round_trips(released):
    plan = plan_from_masks(released['caltech101', 'b1.0'], rank_rule='count')
    assert plan.blocks and plan.vectors
    assert Plan.from_json(plan.to_json()) == plan
