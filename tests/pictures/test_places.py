"""Layers and kinds are read from names alone, and never lump two weights together."""

from __future__ import annotations

import pytest

from cdra_mm.core import find_targets
from cdra_mm.pictures import Places
from tests.models import TinyViT


def test_places_of_a_vit_are_its_layers_and_roles():
    targets = find_targets(TinyViT())
    places = Places(targets, {name: target.shape for name, target in targets.items()})
    words = {
        'q': 'query',
        'k': 'key',
        'v': 'value',
        'proj': 'attention output',
        'fc1': 'feed-forward, up',
        'fc2': 'feed-forward, down',
    }
    assert places.layers == ['0', '1']
    for name, target in targets.items():
        layer = next(piece for piece in name.split('.') if piece.isdecimal())
        kind = words.get(target.role, 'biases, norms, scales')
        assert (places[name].layer, places[name].kind) == (layer, kind)
    assert places.kinds == [*words.values(), 'biases, norms, scales']


def test_places_fill_layers_that_have_no_name():
    assert Places(['layers.1.a.weight', 'layers.4.a.weight']).layers == list('01234')


def test_places_of_stages_name_stage_and_block():
    names = ['stages.0.blocks.0.attn.qkv.weight:q', 'stages.0.blocks.0.norm1.weight']
    names += ['stages.1.blocks.1.ffn.layers.0.0.weight', 'stages.1.blocks.1.norm1.weight']
    places = Places([*names, 'norm3.weight'])
    assert places.layers == ['0.0', '1.0', '1.1']
    assert str(places[names[2]]) == 'layer 1.1, ffn.layers.0.0'
    assert places['norm3.weight'].layer == ''


def test_places_do_not_take_numbers_inside_a_block_for_layers():
    names = ['layers.0.ffn.layers.0.0.weight', 'layers.0.ffn.layers.1.weight']
    assert Places(names).layers == ['0']
    assert Places([*names, 'layers.1.mlp.3.weight', 'layers.1.ln1.weight']).layers == ['0', '1']


@pytest.mark.parametrize('suffix', ['', '_proj'])
def test_places_know_query_key_and_value_of_their_own(suffix):
    shapes = {f'blocks.0.attn.{part}{suffix}.weight': (4, 4) for part in ('q', 'k', 'v')}
    shapes['blocks.0.attn.out.weight'] = (4, 4)
    assert Places([], shapes).kinds == ['query', 'key', 'value', 'attention output']


def test_places_that_look_alike_keep_their_paths():
    shapes = {'blocks.0.attn.proj.weight': (4, 4), 'blocks.0.mixer.weight': (4, 4)}
    assert Places([], shapes).kinds == ['attn.proj', 'mixer']
