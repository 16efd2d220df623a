"""The simple methods on the real classes of mmpretrain and mmseg, tiny."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from mmseg.models.backbones import VisionTransformer

from cdra_mm.core import PlanError, adapters, find_layers
from tests.methods.adapted import (
    EXACT,
    adapt,
    assert_trains_exactly,
    assert_travels,
    inputs,
    plan_for,
)
from tests.mm.test_backbones_families import FAMILIES, MMSEG, SIZE
from tests.models import spread

METHODS = {
    'bias': {'type': 'bias'},
    'partial': {'type': 'partial'},
    'mlp': {'type': 'mlp'},
    'adapter': {'type': 'adapter', 'bottleneck': 4},
    'vpt_shallow': {'type': 'vpt_shallow', 'num_prompts': 3},
    'vpt_deep': {'type': 'vpt_deep', 'num_prompts': 3},
    'apla': {'type': 'apla', 'partial_size': 3},
    'soma': {'type': 'soma', 'rank': 2},
    'dora': {'type': 'dora', 'rank': 2, 'targets': 'all'},
    'mona': {'type': 'mona', 'bottleneck': 4, 'dropout': 0.0},
}
STARTS_AS_THE_BASE = ('bias', 'partial', 'adapter', 'apla', 'soma', 'dora')


def build(make):
    torch.manual_seed(0)
    model = make()
    spread(model)
    model.double().eval()
    return model


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('kind', ['mmpretrain DINOv2', 'mmseg ViT', 'timm EVA'])
def test_method_on_a_plain_transformer(kind, method, tmp_path):
    base, x = build(FAMILIES[kind]), inputs(SIZE, count=2)
    model, plan = adapt(base, METHODS[method])
    maps, expected = model(x), base(x)
    assert [y.shape for y in maps] == [y.shape for y in expected]
    if method in STARTS_AS_THE_BASE:
        torch.testing.assert_close(maps, expected, **EXACT)
    model, plan = adapt(base, METHODS[method], moved=True)
    assert_trains_exactly(base, model, plan, x)
    if adapters(model):
        assert_travels(base, model, plan, x, tmp_path)


@pytest.mark.parametrize('method', ['vpt_shallow', 'vpt_deep'])
def test_vpt_on_every_layer_and_under_checkpointing_inside_the_blocks(method):
    """mmseg's ``with_cp`` computes a block again inside of itself; maps of all layers."""
    gradients = []
    for with_cp in (False, True):
        options = dict(MMSEG, drop_path_rate=0.0, out_indices=(0, 1), with_cp=with_cp)
        base = build(partial(VisionTransformer, mlp_ratio=2, **options))
        model, _ = adapt(base, METHODS[method])
        model.train()
        maps = model(inputs(SIZE, count=2))
        assert [tuple(y.shape) for y in maps] == [(2, 16, 4, 4)] * 2
        sum(y.square().sum() for y in maps).backward()
        gradients.append([p.grad for a in adapters(model).values() for p in a.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('method', ['vpt_shallow', 'vpt_deep'])
@pytest.mark.parametrize(
    'kind',
    [
        'mmpretrain BEiT',
        'mmpretrain EVA-02',
        'mmpretrain Swin',
        'mmpretrain Swin v2',
        'mmseg BEiT',
        'mmseg Swin',
        'timm Swin',
        'timm Swin v2',
        'timm BEiT',
    ],
)
def test_vpt_refuses_blocks_that_know_positions(kind, method):
    with pytest.raises(PlanError, match='know the positions of their tokens'):
        plan_for(FAMILIES[kind](), METHODS[method])


@pytest.mark.parametrize('method', [*STARTS_AS_THE_BASE, 'mona'])
@pytest.mark.parametrize('kind', ['mmpretrain Swin', 'mmseg Swin', 'mmseg BEiT'])
def test_method_on_windows_and_relative_positions(kind, method):
    base, x = build(FAMILIES[kind]), inputs(SIZE, count=2)
    model, plan = adapt(base, METHODS[method])
    for a, b in zip(model(x), base(x), strict=True):
        assert a.shape == b.shape
        if method in STARTS_AS_THE_BASE:
            torch.testing.assert_close(a, b, **EXACT)
    sum(y.square().sum() for y in model(x)).backward()
    own = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in own) == plan.num_trainable
    assert all(p.grad is not None for p in own)


@pytest.mark.parametrize(
    ('kind', 'norms'),
    [
        ('mmpretrain ViT', {'ln1'}),
        ('mmseg ViT', set()),  # it has none by default
        ('mmpretrain Swin', {'norm0', 'norm1'}),  # of both returned stages
        ('timm DINOv3', {'norm'}),
    ],
)
def test_partial_trains_the_norms_behind_the_blocks(kind, norms):
    model = FAMILIES[kind]()
    (last,) = (block for block in find_layers(model)[-1:])
    names = plan_for(model, METHODS['partial']).also_train
    inside = {name for name in names if name.startswith(f'{last}.')}
    assert inside == {f'{last}.{name}' for name, _ in model.get_submodule(last).named_parameters()}
    assert {name.rpartition('.')[0] for name in set(names) - inside} == norms
