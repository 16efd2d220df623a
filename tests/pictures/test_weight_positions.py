"""Layers and kinds are read from names alone, and never lump two weights together."""

from __future__ import annotations

import pytest

from cdra_mm.core import find_targets
from cdra_mm.pictures import WeightPositions
from tests.models import TinyViT


def test_positions_of_a_vit_are_its_layers_and_roles():
    targets = find_targets(TinyViT())
    positions = WeightPositions(targets, {name: target.shape for name, target in targets.items()})
    words = {
        'q': 'query',
        'k': 'key',
        'v': 'value',
        'proj': 'attention output',
        'fc1': 'feed-forward, up',
        'fc2': 'feed-forward, down',
    }
    assert positions.layers == ['0', '1']
    for name, target in targets.items():
        layer = next(piece for piece in name.split('.') if piece.isdecimal())
        kind = words.get(target.role, 'biases, norms, scales')
        assert (positions[name].layer, positions[name].role) == (layer, kind)
    assert positions.roles == [*words.values(), 'biases, norms, scales']


def test_positions_fill_layers_that_have_no_name():
    assert WeightPositions(['layers.1.a.weight', 'layers.4.a.weight']).layers == list('01234')


def test_positions_of_stages_name_stage_and_block():
    names = ['stages.0.blocks.0.attn.qkv.weight:q', 'stages.0.blocks.0.norm1.weight']
    names += ['stages.1.blocks.1.ffn.layers.0.0.weight', 'stages.1.blocks.1.norm1.weight']
    positions = WeightPositions([*names, 'norm3.weight'])
    assert positions.layers == ['0.0', '1.0', '1.1']
    assert str(positions[names[2]]) == 'layer 1.1, ffn.layers.0.0'
    assert positions['norm3.weight'].layer == ''


def test_positions_do_not_take_numbers_inside_a_block_for_layers():
    names = ['layers.0.ffn.layers.0.0.weight', 'layers.0.ffn.layers.1.weight']
    assert WeightPositions(names).layers == ['0']
    assert WeightPositions([*names, 'layers.1.mlp.3.weight', 'layers.1.ln1.weight']).layers == [
        '0',
        '1',
    ]


@pytest.mark.parametrize('suffix', ['', '_proj'])
def test_positions_know_query_key_and_value_of_their_own(suffix):
    shapes = {f'blocks.0.attn.{part}{suffix}.weight': (4, 4) for part in ('q', 'k', 'v')}
    shapes['blocks.0.attn.out.weight'] = (4, 4)
    assert WeightPositions([], shapes).roles == ['query', 'key', 'value', 'attention output']


def test_positions_that_look_alike_keep_their_paths():
    shapes = {'blocks.0.attn.proj.weight': (4, 4), 'blocks.0.mixer.weight': (4, 4)}
    assert WeightPositions([], shapes).roles == ['attn.proj', 'mixer']
