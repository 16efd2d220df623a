"""Layers and roles come from the model; plans without them say what their names tell."""

from __future__ import annotations

from torch import nn

from cdra_mm.core import Plan, find_targets
from cdra_mm.core.planning.plan_positions import (
    find_positions,
    positions_by_name,
    with_positions,
)
from cdra_mm.core.planning.records import Positions
from tests.models import TinyViT


def test_positions_are_those_of_the_model():
    model = TinyViT()
    positions = find_positions(model)
    assert positions.layers == ('blocks.0', 'blocks.1')
    targets = find_targets(model)
    assert positions.roles == {name: target.role for name, target in targets.items()}
    name = 'blocks.1.attn.qkv.weight:q'
    assert (positions.layer_of(name), positions.role_of(name)) == ('blocks.1', 'q')
    assert positions.layer_of('cls_token') == positions.layer_of('blocks.10.x') == ''
    assert positions.role_of('blocks.1.ffn.bottleneck') == 'ffn.bottleneck'
    assert find_positions(nn.Linear(2, 2)) == Positions()
    plan = with_positions(Plan(), model)
    assert plan.positions == positions
    assert with_positions(plan, nn.Linear(2, 2)) is plan


def test_positions_by_name_find_stage_and_block():
    names = ['stages.0.blocks.0.attn.qkv.weight:q', 'stages.0.blocks.0.norm1.weight']
    names += ['stages.1.blocks.10.ffn.layers.0.0.weight', 'stages.1.blocks.9.norm1.weight']
    positions = positions_by_name([*names, 'norm3.weight'])
    assert positions.layers == (
        'stages.0.blocks.0',
        'stages.1.blocks.9',
        'stages.1.blocks.10',
    )
    assert positions.roles == {names[0]: 'q'}
    assert positions.role_of(names[2]) == 'ffn.layers.0.0'
    assert positions.layer_of('norm3.weight') == ''


def test_positions_by_name_do_not_take_numbers_inside_a_block_for_layers():
    names = ['layers.0.ffn.layers.0.0.weight', 'layers.0.ffn.layers.1.weight']
    assert positions_by_name(names).layers == ('layers.0',)
    more = [*names, 'layers.1.mlp.3.weight', 'layers.1.ln1.weight']
    assert positions_by_name(more).layers == ('layers.0', 'layers.1')
