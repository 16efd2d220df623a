"""Plans of the papers' block sizes and of mask files."""

from __future__ import annotations

from statistics import mean

import numpy as np
import pytest
import torch

from cdra_mm.core import ConfigError, DataError, Plan, adapters, find_targets
from cdra_mm.reading import read_masks
from cdra_mm.sizing.block_sizes import KINDS, Sizes, adapt, drawn_plan, make_block_plan
from tests.benchmark.tiny import tiny_case


class FlatViT(torch.nn.Module):
    """The matrices of a ViT of some width, without values."""

    def __init__(self, width, depth):
        super().__init__()
        self.blocks = torch.nn.ModuleList(FlatBlock(width) for _ in range(depth))


class FlatBlock(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        with torch.device('meta'):
            self.attn = torch.nn.Module()
            self.attn.qkv = torch.nn.Linear(width, 3 * width)
            self.attn.proj = torch.nn.Linear(width, width)
            self.mlp = torch.nn.Module()
            self.mlp.fc1 = torch.nn.Linear(width, 4 * width)
            self.mlp.fc2 = torch.nn.Linear(4 * width, width)


@pytest.mark.parametrize(('width', 'factor'), [(768, 1.0), (384, 0.5), (1024, 4 / 3)])
@pytest.mark.parametrize(
    ('kind', 'rows', 'cols', 'rank', 'mean_cols'),
    [('paper', (121, 221), (384, 567), 10, 475), ('spt', (120, 280), (14, 70), 2, 36)],
)
def test_block_sizes_are_those_of_the_paper(kind, rows, cols, rank, mean_cols, width, factor):
    plan = make_block_plan(FlatViT(width, 40), kind)
    assert len(plan.blocks) == 6 * 40 and {block.rank for block in plan.blocks} == {rank}
    for got, bounds in (('rows', rows), ('cols', cols)):
        sizes = [len(getattr(block, got)) for block in plan.blocks]
        assert round(factor * bounds[0]) <= min(sizes) and max(sizes) <= round(factor * bounds[1])
    found = mean(len(block.cols) for block in plan.blocks)
    assert found == pytest.approx(factor * mean_cols, rel=0.06)


def test_plan_covers_every_matrix_and_is_a_valid_plan():
    model = tiny_case().make_model()
    plan = make_block_plan(model, 'paper')
    matrices = [name for name, t in find_targets(model).items() if len(t.shape) == 2]
    assert [block.name for block in plan.blocks] == matrices
    assert {name.rpartition(':')[2] for name in matrices if ':' in name} == {'q', 'k', 'v'}
    assert Plan.from_json(plan.to_json()) == plan
    assert make_block_plan(model, 'paper', seed=1) != plan == make_block_plan(model, 'paper')


def test_plan_of_a_share_is_spread_over_the_depth():
    plan = drawn_plan(FlatViT(96, 4), KINDS['paper'], share=0.5)
    assert len(plan.blocks) == 12
    assert {block.name.split('.')[1] for block in plan.blocks} == set('0123')


def test_block_never_exceeds_its_matrix():
    plan = drawn_plan(FlatViT(96, 2), Sizes((5000, 6000), (5000, 6000), 1.0, 10_000))
    for block in plan.blocks:
        assert (len(block.rows), len(block.cols)) == block.shape
        assert block.rank == min(block.shape)


def test_adapted_model_has_an_effect_and_trains_plan_and_head():
    case = tiny_case()
    images, _ = case.make_batch()
    model = case.make_model()
    plain = model(images)
    plan = make_block_plan(model, 'spt')
    adapt(model, plan)
    assert len(adapters(model)) == 12 and not torch.equal(model(images), plain)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == plan.num_trainable + 10 * 48 + 10


def write_masks(path, width=48):
    """Masks of a ViT of two blocks, at two budgets, as SPT names them."""
    entry = [width, width, 0, 1, width + 1]
    arrays = {
        'b0.1/blocks.0.attn.q.weight': entry,
        'b0.4/blocks.0.attn.v.weight': entry,
        'b0.4/blocks.1.mlp.fc1.weight': [4 * width, width, *range(4 * width)],
        'b0.4/blocks.1.mlp.fc1.bias': [4 * width, 0, 3],
        'b0.4/__structured__': [0, 1],
    }
    np.savez(path, **{key: np.array(value, dtype=np.int32) for key, value in arrays.items()})
    return path


def test_masks_of_a_file_become_blocks(tmp_path):
    model = tiny_case().make_model()
    path = write_masks(tmp_path / 'masks.npz')
    blocks = {block.name: block for block in make_block_plan(model, str(path)).blocks}
    assert set(blocks) == {'blocks.0.attn.qkv.weight:v', 'blocks.1.mlp.fc1.weight'}
    small, large = blocks.values()
    assert (small.rows, small.cols, small.rank) == ((0, 1), (1, 0), 1)
    assert (len(large.rows), len(large.cols), large.rank) == (4, 48, 192 // 52)
    named = make_block_plan(model, f'{path}@0.1')
    assert [block.name for block in named.blocks] == ['blocks.0.attn.qkv.weight:q']


def test_masks_of_another_architecture_are_refused(tmp_path):
    model = tiny_case().make_model()
    path = write_masks(tmp_path / 'masks.npz', width=64)
    with pytest.raises(ConfigError, match=r'\(64, 64\).*one of \(48, 48\).*another architecture'):
        make_block_plan(model, str(path))
    with pytest.raises(ConfigError, match="no budget '7': expected 0.1, 0.4"):
        make_block_plan(model, f'{path}@7')


@pytest.mark.parametrize('content', [b'', b'no archive', None])
def test_broken_mask_file_is_named(content, tmp_path):
    path = tmp_path / 'broken.npz'
    if content is not None:
        path.write_bytes(content)
    message = r'broken\.npz.* mask file' if content is not None else r'broken\.npz does not exist'
    with pytest.raises(DataError, match=message):
        read_masks(path)
