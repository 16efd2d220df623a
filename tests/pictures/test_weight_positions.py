"""Positions are shown in words and numbers, and never lump two weights together."""

from __future__ import annotations

import pytest

from cdra_mm.core import find_targets
from cdra_mm.core.planning.plan_positions import find_positions
from cdra_mm.core.planning.records import Positions
from cdra_mm.pictures import WeightPositions
from tests.models import TinyViT

WORDS = {
    'q': 'query',
    'k': 'key',
    'v': 'value',
    'proj': 'attention output',
    'fc1': 'feed-forward, up',
    'fc2': 'feed-forward, down',
}


def test_positions_of_a_vit_are_its_layers_and_roles():
    targets = find_targets(TinyViT())
    positions = WeightPositions(find_positions(TinyViT()), targets)
    assert positions.layers == ['0', '1']
    for name, target in targets.items():
        layer = target.module.split('.')[1]
        role = WORDS.get(target.role, 'biases, norms, scales')
        assert (positions[name].layer, positions[name].role) == (layer, role)
        assert str(positions[name]) == f'layer {layer}, {role}'
    assert positions.roles == [*WORDS.values(), 'biases, norms, scales']


@pytest.mark.parametrize(
    ('layers', 'shown'),
    [
        (('stages.0.blocks.0', 'stages.1.blocks.2'), ['0.0', '1.2']),
        (('one.0', 'other.0'), ['one.0', 'other.0']),
    ],
)
def test_layers_are_shown_by_their_numbers_where_those_tell_them_apart(layers, shown):
    positions = WeightPositions(Positions(layers))
    assert positions.layers == shown
    assert positions[f'{layers[1]}.norm.weight'].layer == shown[1]
    assert str(positions['cls_token']) == 'cls_token'


def test_weights_of_one_role_in_one_block_keep_their_paths():
    roles = {f'blocks.{i}.{path}.weight': 'proj' for i in (0, 1) for path in ('attn.proj', 'mixer')}
    positions = Positions(('blocks.0', 'blocks.1'), roles)
    assert WeightPositions(positions, roles).roles == ['attn.proj', 'mixer']
    del roles['blocks.0.mixer.weight'], roles['blocks.1.attn.proj.weight']
    assert WeightPositions(positions, roles).roles == ['attention output']
