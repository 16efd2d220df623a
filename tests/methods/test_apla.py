"""APLA: the attention's output projections, whole or some rows of each, in place or beside."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from cdra_mm.core import (
    ConfigError,
    PlanError,
    adapters,
    apply_plan,
)
from cdra_mm.methods import Request, make_method
from cdra_mm.methods.apla import Rows
from cdra_mm.methods.base import FROZEN
from tests.methods.adapted import (
    EXACT,
    adapt,
    assert_merges_and_comes_out_again,
    assert_same_gradients,
    assert_trains_exactly,
    assert_travels,
    inputs,
    plan_for,
    timm_vit,
    tiny,
    trained,
)
from tests.models import MODELS, TinySwin, images

WHOLE = {'type': 'apla'}
PARTIAL = {'type': 'apla', 'partial_size': 3}


class WrittenOut(nn.Module):
    """timm's ViT whose projections are two layers put together, as the released code has them."""

    def __init__(self, vit, rows):
        super().__init__()
        self.vit, self.rows = vit.requires_grad_(False), rows
        projections = [block.attn.proj for block in vit.blocks]
        pairs = list(zip(projections, rows, strict=True))
        self.weights = nn.ParameterList(proj.weight[own].clone() for proj, own in pairs)
        self.biases = nn.ParameterList(proj.bias[own].clone() for proj, own in pairs)

    def forward(self, x):
        vit, pieces = self.vit, zip(self.rows, self.weights, self.biases, strict=True)
        x = vit._pos_embed(vit.patch_embed(x))
        for block, (rows, weight, bias) in zip(vit.blocks, pieces, strict=True):
            kept = {}
            hook = block.attn.proj.register_forward_pre_hook(
                lambda _, args, kept=kept: kept.update(x=args[0])
            )
            y = block.attn(block.norm1(x))
            hook.remove()
            x = x + y.index_copy(-1, torch.tensor(rows), F.linear(kept['x'], weight, bias))
            x = x + block.mlp(block.norm2(x))
        return vit.forward_head(vit.norm(x))


def rows_of(plan):
    return [list(map(int, part.sizes['rows'].split())) for part in plan.parts]


def test_apla_of_rows_equals_the_projections_in_two_pieces():
    base, x = timm_vit(), inputs()
    model, plan = adapt(base, PARTIAL)
    written = WrittenOut(copy.deepcopy(base), rows_of(plan))
    torch.testing.assert_close(model(x), base(x), **EXACT)
    for twin in (model, written):
        twin(x).square().sum().backward()
    found = adapters(model)
    names = [f'blocks.{i}.attn.proj' for i in range(3)]
    ours = [found[f'{n}.weight'].value for n in names] + [found[f'{n}.bias'].value for n in names]
    assert_same_gradients(ours, [*written.weights, *written.biases])


@pytest.mark.parametrize('config', [WHOLE, PARTIAL], ids=['whole', 'rows'])
@pytest.mark.parametrize('kind', MODELS)
def test_apla_starts_as_the_base_trains_what_it_declares_and_travels(kind, config, tmp_path):
    base, x = MODELS[kind]().double().eval(), images(3, torch.float64)[0]
    model, plan = adapt(base, config)
    torch.testing.assert_close(model(x), base(x), **EXACT)
    model, plan = adapt(base, config, moved=True)
    assert_trains_exactly(base, model, plan, x)
    assert_travels(base, model, plan, x, tmp_path)


@pytest.mark.parametrize('kind', ['fused', 'mha', 'windowed'])
def test_apla_of_rows_merges_and_comes_out_again(kind):
    base, x = MODELS[kind]().double().eval(), images(3, torch.float64)[0]
    model, _ = adapt(base, PARTIAL, moved=True)
    assert_merges_and_comes_out_again(base, model, x)


def test_apla_trains_as_many_parameters_of_vit_b_as_its_formula_says():
    """12 projections of 768 x 768 with 768 biases; r rows of each with r biases."""
    with torch.device('meta'):
        model = VisionTransformer(num_classes=0)
    assert plan_for(model, WHOLE).num_trainable == 12 * 768 * 769 == 7_087_104
    partial = plan_for(model, {'type': 'apla', 'partial_size': 128})
    assert partial.num_trainable == 12 * 128 * 769 == 1_181_184


def test_apla_of_all_is_in_place_and_nothing_else():
    model, plan = adapt(timm_vit(), WHOLE)
    names = {f'blocks.{i}.attn.proj.{own}' for i in range(3) for own in ('weight', 'bias')}
    assert set(trained(model)) == names and adapters(model) == {}
    assert len(plan_for(TinySwin(), WHOLE).also_train) == 3  # of three blocks, not between them


def test_apla_rows_are_drawn_by_the_seed_for_each_layer_and_stay_where_one_is_withheld():
    base = timm_vit()
    first, again = (rows_of(plan_for(base, PARTIAL)) for _ in range(2))
    other = rows_of(plan_for(base, {**PARTIAL, 'seed': 1}))
    assert first == again != other and len(set(map(tuple, first))) > 1
    withheld = {'blocks.0.attn.proj.weight': FROZEN, 'blocks.0.attn.proj.bias': FROZEN}
    plan = make_method(PARTIAL).plan(Request(base, withheld=withheld))
    assert rows_of(plan) == first[1:] and [list(v.indices) for v in plan.vectors] == first[1:]


def test_apla_of_a_base_in_half_precision_is_trained_beside_it_in_fp32(recwarn):
    base = timm_vit().to(torch.bfloat16)
    model, plan = adapt(base, WHOLE)
    assert not plan.also_train and not [w for w in recwarn if 'half precision' in str(w.message)]
    own = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in own} == {torch.float32} and len(own) == 6
    x = inputs().to(torch.bfloat16)
    assert torch.equal(model(x), base(x))


def test_apla_of_rows_is_a_small_file():
    """Beside the values some bytes for each row: no list of entries."""
    base = timm_vit(embed_dim=64, num_heads=2).float()
    model, plan = adapt(base, {'type': 'apla', 'partial_size': 8})
    state = model.state_dict()
    learnt = sum(v.nbytes for key, v in state.items() if '.cdra.' in key)
    assert learnt == 4 * plan.num_trainable == 4 * 3 * 8 * 65
    assert state['cdra_plan'].numel() < 3000


@pytest.mark.parametrize('rows', ['', '1 1', '2 1', '0 8', '-1'])
def test_rows_refuse_what_are_no_rows(rows):
    base = timm_vit()
    plan = plan_for(base, PARTIAL)
    part = plan.parts[0].__class__('blocks.0.attn.proj.weight', Rows.kind, {'rows': rows}, 24)
    with pytest.raises(PlanError, match=r'blocks.0.attn.proj.weight \(rows\) cannot be put on'):
        apply_plan(base, plan.__class__(parts=(part,)))


def test_apla_refuses_more_rows_than_there_are_and_a_backbone_that_withholds_them():
    with pytest.raises(PlanError, match='has 8 outputs: expected partial_size=9 to be at most'):
        plan_for(tiny(), {'type': 'apla', 'partial_size': 9})
    base = timm_vit()
    withheld = {name: FROZEN for name, _ in base.named_parameters() if '.proj.' in name}
    with pytest.raises(PlanError, match='VisionTransformer has no output projection'):
        make_method(WHOLE).plan(Request(base, withheld=withheld))


@pytest.mark.parametrize('value', [0, -1, 2.0, True, '8'])
def test_apla_refuses_a_size_that_is_no_count(value):
    with pytest.raises(ConfigError, match=re.escape(f'partial_size={value!r}: expected a')):
        make_method({'type': 'apla', 'partial_size': value})
