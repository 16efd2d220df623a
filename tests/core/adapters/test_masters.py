"""On a base in bfloat16 what is trained is fp32, and exactness ends where a weight is rounded."""

from __future__ import annotations

import copy

import pytest
import torch

from cdra_mm.core import (
    CheckpointError,
    adapters,
    apply_plan,
    estimate_scores,
    fingerprint,
    load_adapter,
    make_plan,
    merge_adapters,
    plan_of,
    remove_adapters,
    save_adapter,
    unmerge_adapters,
)
from cdra_mm.core.adapters.entries import Entries
from cdra_mm.core.adapters.masters import with_masters
from tests.core.problems import outputs, random_plan
from tests.models import MODELS, TinyViT, images, losses

BF16 = torch.bfloat16


def base(kind='fused'):
    torch.manual_seed(0)
    return MODELS[kind]().to(BF16).eval()


def plan_for(model):
    x, y = images(6, BF16)
    scores = estimate_scores(model, [(x, y)], losses)
    assert {score.dtype for score in scores.values()} == {torch.float32}
    return make_plan(scores, gamma=0.3, rank_rule='count', fingerprint=fingerprint(model))


def trained(kind='fused', steps=3, lr=1e-3):
    """A plain model and one that has been trained."""
    plain = base(kind)
    model = apply_plan(copy.deepcopy(plain), plan_for(plain))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        losses(model, images(6, BF16)).mean().backward()
        optimizer.step()
    return plain, model


@pytest.mark.parametrize('kind', MODELS)
def test_all_that_is_trained_of_a_bf16_base_is_fp32_and_the_base_stays(kind):
    plain, model = trained(kind)
    own = {id(p) for adapter in adapters(model).values() for p in adapter.parameters()}
    before = plain.state_dict()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (id(parameter) in own)
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        else:
            assert parameter.dtype == BF16 and torch.equal(parameter, before[name])


def test_whole_vectors_of_a_bf16_base_are_trained_as_all_of_their_entries():
    model = base()
    plan = plan_for(model)
    whole = [vector for vector in plan.vectors if vector.indices is None]
    assert whole
    apply_plan(model, plan)
    kept = {vector.name: vector for vector in plan_of(model).vectors}
    for vector in whole:
        assert kept[vector.name].indices == tuple(range(vector.length))
        assert isinstance(adapters(model)[vector.name], Entries)
    assert plan_of(model).num_trainable == plan.num_trainable


def test_steps_below_the_rounding_of_a_bf16_vector_add_up():
    """Of a bias of 1.0 in bfloat16 a step of 2^-12 is lost, and so are 64 of them."""
    model = base()
    with torch.no_grad():
        model.blocks[0].norm1.weight.fill_(1.0)
    apply_plan(model, plan_for(model))
    adapter = adapters(model)['blocks.0.norm1.weight']
    with torch.no_grad():
        for _ in range(64):
            adapter.value += 2**-12
    assert torch.equal(model.blocks[0].norm1.weight, torch.full((8,), 1 + 2**-6, dtype=BF16))


def test_plan_of_an_fp32_base_stays_as_it_is():
    model = TinyViT()
    plan = random_plan(model)
    assert with_masters(model, plan) is plan


def test_parameters_beside_the_plan_that_stay_narrow_are_warned_of():
    with pytest.warns(UserWarning, match=r'1 parameters are trained whole in half .*cls_token'):
        apply_plan(base(), random_plan(base()))


def test_merged_weight_of_a_bf16_base_is_the_sum_rounded_once():
    plain, model = trained(lr=0.5)
    expected = {}
    for name, adapter in adapters(model).items():
        key = name.partition(':')[0]
        wide = expected.get(key, plain.get_parameter(key).detach().double())
        # The parts of a fused weight lie apart: each is rounded once.
        expected[key] = adapter.added_to(wide)
    adapted = outputs(model, BF16)
    merge_adapters(model)
    remove_adapters(model)
    for key, value in expected.items():
        assert torch.equal(model.get_parameter(key), value.to(BF16)), key
    assert not torch.equal(outputs(model, BF16), outputs(plain, BF16))
    torch.testing.assert_close(outputs(model, BF16), adapted, rtol=0.05, atol=0.05)


def test_unmerged_bf16_base_is_within_a_rounding_of_what_it_was():
    plain, model = trained(lr=0.5)
    merge_adapters(model)
    merged = {name: p.detach().clone() for name, p in model.named_parameters()}
    unmerge_adapters(model)
    back = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        bound = 2 * 2**-8 * torch.maximum(parameter.abs(), merged[name].abs())
        assert bool(((back[name] - parameter).abs() <= bound).all()), name


def test_adapter_file_of_a_bf16_base_belongs_to_that_base_alone(tmp_path):
    plain, model = trained()
    save_adapter(model, tmp_path / 'a.safetensors')
    other = copy.deepcopy(plain)
    load_adapter(other, tmp_path / 'a.safetensors')
    assert torch.equal(outputs(other, BF16), outputs(model, BF16))
    wide = copy.deepcopy(plain).float()
    with pytest.raises(CheckpointError, match=r'\(float32 8x8 here, bfloat16 8x8 there\)'):
        load_adapter(wide, tmp_path / 'a.safetensors')


def test_scores_of_a_bf16_base_are_near_those_of_the_same_weights_in_fp32():
    model = base()
    x, y = images(6, BF16)
    narrow = estimate_scores(model, [(x, y)], losses)
    wide = estimate_scores(copy.deepcopy(model).float(), [(x.float(), y)], losses)
    flat = [torch.cat([s.flatten() for s in scores.values()]) for scores in (narrow, wide)]
    assert float(torch.nn.functional.cosine_similarity(*flat, dim=0)) > 0.99
