"""Adapter: bottlenecks after the FFN, equal to blocks that are written out."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cdra_mm.core import ConfigError, PlanError, adapters, apply_plan, find_targets, merge_adapters
from cdra_mm.methods import make_method
from cdra_mm.methods.bottleneck import Bottleneck
from tests.methods.adapted import (
    EXACT,
    adapt,
    assert_same_gradients,
    assert_trains_exactly,
    assert_travels,
    inputs,
    plan_for,
    timm_vit,
    tiny,
)
from tests.models import MODELS, TinySwin, images

CONFIG = {'type': 'adapter', 'bottleneck': 4}


class WrittenOut(nn.Module):
    """timm's ViT with a bottleneck between the FFN and its residual, as VPT's code has it."""

    def __init__(self, vit, bottleneck):
        super().__init__()
        self.vit = vit.requires_grad_(False)
        width = vit.embed_dim
        self.down = nn.ModuleList(nn.Linear(width, bottleneck) for _ in vit.blocks).double()
        self.up = nn.ModuleList(nn.Linear(bottleneck, width) for _ in vit.blocks).double()

    def forward(self, x):
        vit = self.vit
        x = vit._pos_embed(vit.patch_embed(x))
        for block, down, up in zip(vit.blocks, self.down, self.up, strict=True):
            x = x + block.ls1(block.attn(block.norm1(x)))
            y = block.mlp(block.norm2(x))
            x = x + block.ls2(y + up(F.gelu(down(y))))
        return vit.forward_head(vit.norm(x))


@pytest.mark.parametrize('options', [{}, dict(init_values=0.3)], ids=['plain', 'layer scale'])
def test_adapter_equals_blocks_that_are_written_out(options):
    base = timm_vit(**options)
    model, _ = adapt(base, CONFIG, moved=True)
    written = WrittenOut(copy.deepcopy(base), 4)
    places = list(adapters(model).values())
    with torch.no_grad():
        for ours, down, up in zip(places, written.down, written.up, strict=True):
            down.weight.copy_(ours.down), down.bias.copy_(ours.down_bias)
            up.weight.copy_(ours.up), up.bias.copy_(ours.up_bias)
    x = inputs()
    torch.testing.assert_close(model(x), written(x))
    for twin in (model, written):
        twin(x).square().sum().backward()
    ours = [p for a in places for p in (a.down, a.down_bias, a.up, a.up_bias)]
    pairs = zip(written.down, written.up, strict=True)
    theirs = [p for d, u in pairs for p in (d.weight, d.bias, u.weight, u.bias)]
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize('kind', MODELS)
def test_adapter_starts_as_the_base_and_trains_what_it_declares(kind, tmp_path):
    base = MODELS[kind]().double().eval()
    x = images(3, torch.float64)[0]
    model, plan = adapt(base, CONFIG)
    with torch.no_grad():
        torch.testing.assert_close(model(x), base(x), **EXACT)
    ends = [t for t in find_targets(base).values() if t.role in ('fc2', 'w3')]
    formula = sum(2 * 4 * t.shape[0] + 4 + t.shape[0] for t in ends)
    assert plan.num_trainable == formula and len(ends) == len(plan.parts)
    model, plan = adapt(base, CONFIG, moved=True)  # away from the zeros of up
    assert_trains_exactly(base, model, plan, x)
    assert_travels(base, model, plan, x, tmp_path)


def test_adapter_learns_from_its_first_step():
    """VPT's code starts with everything zero: then only the last bias ever has a gradient."""
    base = timm_vit()
    model, _ = adapt(base, CONFIG)
    model(inputs()).square().sum().backward()
    first = next(iter(adapters(model).values()))
    assert first.up.grad.abs().max() > 0 and first.down.abs().max() > 0
    assert first.down.abs().max() <= 8**-0.5


def test_adapter_initial_values_follow_the_seed():
    base = timm_vit()
    values = [next(iter(adapters(adapt(base, CONFIG, seed=s)[0]).values())).down for s in (0, 0, 1)]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


def test_adapter_in_half_precision_keeps_its_type_and_fp32_masters():
    base = timm_vit().to(torch.bfloat16)
    model, _ = adapt(base, CONFIG, moved=True)
    x = inputs().to(torch.bfloat16)
    assert model(x).dtype == torch.bfloat16
    assert {p.dtype for a in adapters(model).values() for p in a.parameters()} == {torch.float32}
    torch.testing.assert_close(model(x).float(), model.float()(x.float()), atol=0.1, rtol=0.1)


def test_adapter_does_not_merge_and_says_so():
    model, _ = adapt(tiny(), CONFIG)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(PlanError, match='do not merge.*needs them'):
        merge_adapters(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_adapter_refuses_a_backbone_without_an_ffn():
    model = tiny(hidden=8)  # as wide as the tokens: nothing tells its end
    with pytest.raises(PlanError, match=r'blocks\.0 has 0 matrices that end an FFN'):
        plan_for(model, CONFIG)


def test_adapter_refuses_a_layer_whose_forward_was_replaced():
    """As mmengine's activation_checkpointing does it: the bottleneck would never be called."""
    model = tiny()
    plan = plan_for(model, CONFIG)
    layer = model.blocks[1].mlp.fc2
    layer.forward = layer.forward
    with pytest.raises(PlanError, match='blocks.1.mlp.fc2.*activation_checkpointing'):
        apply_plan(model, plan)
    assert adapters(model) == {}


@pytest.mark.parametrize('value', [0, -1, 2.0, True, '8', None])
def test_adapter_refuses_a_bottleneck_that_is_no_count(value):
    with pytest.raises(ConfigError, match=re.escape(f'bottleneck={value!r}: expected a')):
        make_method({'type': 'adapter', 'bottleneck': value})


def test_bottleneck_refuses_another_width():
    with pytest.raises(ValueError, match='slices of 7 outputs at 0 of 6'):
        Bottleneck(nn.Linear(4, 6), width=7, bottleneck=2)


def test_adapter_of_swin_follows_the_width_of_its_stages():
    plan = plan_for(TinySwin(), CONFIG)
    assert [part.sizes['width'] for part in plan.parts] == [8, 8, 16]
