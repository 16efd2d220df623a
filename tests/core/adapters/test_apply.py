"""A plan in a model: what is trained, what stays, and what the model then computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cdra_mm.core import adapters, apply_plan, count_parameters, find_targets, plan_from_masks
from tests.core.problems import (
    adapted,
    adapter_keys,
    move,
    outputs,
    random_masks,
    random_plan,
    trainable_names,
)
from tests.models import MODELS, TinyViT, images, losses
from tests.reference.layers import dense_model

KINDS = pytest.mark.parametrize('kind', MODELS)


@KINDS
def test_apply_plan_fresh_output_equals_the_base(kind):
    for dtype in (torch.float64, torch.float32):
        base, model, _ = adapted(kind, moved=False, dtype=dtype)
        torch.testing.assert_close(
            outputs(model, dtype), outputs(base, dtype), rtol=1e-6, atol=1e-6
        )


@KINDS
def test_apply_plan_output_equals_the_dense_model(kind):
    """Also where nn.MultiheadAttention reads its weights functionally or takes its fast path."""
    base, model, _ = adapted(kind)
    dense = dense_model(base, model.state_dict())
    expected = outputs(dense)
    assert not torch.allclose(expected, outputs(base), atol=1e-2)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(images(3, torch.float64)[0]).detach(), expected)


@KINDS
def test_apply_plan_effective_weight_is_what_the_module_reads(kind):
    base, model, plan = adapted(kind)
    dense = dict(dense_model(base, model.state_dict()).named_parameters())
    stored = dict(base.named_parameters())
    for record in (*plan.blocks, *plan.vectors):
        path = record.name.split(':')[0]
        module, _, parameter = path.rpartition('.')
        effective = getattr(model.get_submodule(module), parameter)
        torch.testing.assert_close(effective.detach(), dense[path].detach())
        assert not torch.equal(effective, stored[path])


@KINDS
def test_apply_plan_keeps_the_base_under_its_keys(kind):
    base, model, plan = adapted(kind, moved=False)
    state = model.state_dict()
    assert set(state) == set(base.state_dict()) | adapter_keys(plan)
    assert [key for key in state if '.cdra.' not in key] == list(base.state_dict())
    for key, value in base.state_dict().items():
        assert torch.equal(state[key], value), key
    assert {n for n, _ in base.named_parameters()} <= {n for n, _ in model.named_parameters()}


@KINDS
def test_apply_plan_adapter_tensors_have_their_shapes(kind):
    _, model, plan = adapted(kind, moved=False)
    state, buffers = model.state_dict(), dict(model.named_buffers())
    for block in plan.blocks:
        module, _, suffix = block.name.rpartition('.')
        rows, cols, down, up = (
            state[f'{module}.cdra.{suffix}.{key}'] for key in ('rows', 'cols', 'down', 'up')
        )
        assert rows.dtype == cols.dtype == torch.int64
        assert (tuple(rows.tolist()), tuple(cols.tolist())) == (block.rows, block.cols)
        assert tuple(down.shape) == (block.rank, len(block.cols))
        assert tuple(up.shape) == (len(block.rows), block.rank)
        assert not up.any() and down.abs().max() > 0
        # Kaiming uniform with a = sqrt 5 is uniform within 1 / sqrt(fan in).
        assert float(down.abs().max()) <= len(block.cols) ** -0.5
        assert f'{module}.cdra.{suffix}.rows' in buffers
        assert up.dtype == down.dtype == torch.float64
    for vector in plan.vectors:
        if vector.indices is not None:
            module, _, suffix = vector.name.rpartition('.')
            index = state[f'{module}.cdra.{suffix}.index']
            assert tuple(index.tolist()) == vector.indices
            assert state[f'{module}.cdra.{suffix}.value'].shape == index.shape


@KINDS
def test_apply_plan_trains_exactly_what_the_plan_declares(kind):
    _, model, plan = adapted(kind, moved=False)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trainable) == trainable_names(plan)
    assert sum(p.numel() for p in trainable.values()) == plan.num_trainable
    assert count_parameters(model)[0] == plan.num_trainable


@KINDS
def test_apply_plan_one_step_moves_the_trainable_and_nothing_else(kind):
    torch.manual_seed(0)
    model = MODELS[kind]().train()
    plan = random_plan(model)
    apply_plan(model, plan, keep_trainable=('head',))
    move(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainable = trainable_names(plan) | {'head.weight', 'head.bias'}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    losses(model.eval(), images(16)).mean().backward()
    optimizer.step()
    after = model.state_dict()
    # A key bias shifts all logits of a softmax alike: its gradient is zero by mathematics.
    still = {name for name in trainable if torch.equal(before[name], after[name])}
    assert all(name.endswith(('qkv.cdra.bias.value', 'cdra.in_proj_bias.value')) for name in still)
    for name in set(before) - trainable:
        assert torch.equal(before[name], after[name]), name


def test_apply_plan_keeps_module_identity_and_class():
    model = TinyViT()
    plan = random_plan(model)
    before = dict(model.named_modules())
    classes = {name: type(module) for name, module in before.items()}
    apply_plan(model, plan)
    for name, module in before.items():
        assert model.get_submodule(name) is module
        assert isinstance(module, classes[name])


def test_apply_plan_is_reproducible_and_leaves_the_random_state_alone():
    def down(seed):
        torch.manual_seed(0)
        model = TinyViT()
        state = torch.get_rng_state()
        apply_plan(model, random_plan(model), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return {k: v for k, v in model.state_dict().items() if k.endswith('.down')}

    one, same, other = down(3), down(3), down(4)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)
    factors = [v.flatten()[:3].tolist() for v in one.values()]
    assert len({tuple(f) for f in factors}) == len(factors)


def test_apply_plan_seed_is_0_unless_given():
    states = []
    for options in ({}, {'seed': 0}):
        torch.manual_seed(0)
        model = TinyViT()
        apply_plan(model, random_plan(model), **options)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@KINDS
def test_count_parameters_leaves_the_adapters_out_of_the_total(kind):
    base, model, plan = adapted(kind, moved=False)
    assert count_parameters(model) == (
        plan.num_trainable,
        sum(p.numel() for p in base.parameters()),
    )


def test_apply_plan_keep_trainable_is_a_module_path():
    model = TinyViT()
    model.head2 = nn.Linear(8, 2)
    apply_plan(model, random_plan(model), keep_trainable=('head',))
    assert model.head.weight.requires_grad and model.head.bias.requires_grad
    assert not model.head2.weight.requires_grad
    assert not model.norm.weight.requires_grad


def test_apply_plan_adapts_parts_of_a_fused_weight_apart():
    """q and v adapted, k not: the rows of k are the base's bit for bit."""
    model = TinyViT().double()
    base = copy.deepcopy(model)
    chosen = {name: mask for name, mask in random_masks(model).items() if ':' in name}
    assert 'blocks.0.attn.qkv.weight:k' not in chosen
    apply_plan(model, plan_from_masks(chosen, rank_rule=2))
    move(model)
    weight = model.blocks[0].attn.qkv.weight.detach()
    before = base.blocks[0].attn.qkv.weight.detach()
    assert torch.equal(weight[8:16], before[8:16])
    assert not torch.equal(weight[:8], before[:8])
    assert not torch.equal(weight[16:], before[16:])
    x = torch.randn(2, 5, 8).double()
    changed = model.blocks[0].attn.qkv(x)[..., 8:16]
    torch.testing.assert_close(changed, base.blocks[0].attn.qkv(x)[..., 8:16])


def test_apply_plan_trains_only_the_chosen_entries_of_a_vector():
    model = TinyViT().double().eval()
    chosen = {}
    for name in ('attn.proj.bias', 'norm1.weight', 'norm1.bias', 'ls1.gamma', 'attn.qkv.bias'):
        length = find_targets(model)[f'blocks.0.{name}'].shape[0]
        mask = torch.zeros(length, dtype=torch.bool)
        mask[[1, 6]] = True
        chosen[f'blocks.0.{name}'] = mask
    base = copy.deepcopy(model)
    plan = plan_from_masks(chosen, beta=1)
    apply_plan(model, plan)
    assert plan.num_trainable == 10 == count_parameters(model)[0]
    torch.testing.assert_close(outputs(model), outputs(base), rtol=0, atol=0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    losses(model, images(8, torch.float64)).sum().backward()
    optimizer.step()
    dense = dense_model(base, model.state_dict())
    for name in chosen:
        module, _, parameter = name.rpartition('.')
        effective = getattr(model.get_submodule(module), parameter).detach()
        moved = (effective != base.get_parameter(name)).nonzero().flatten().tolist()
        assert moved == [1, 6], name
    torch.testing.assert_close(outputs(model), outputs(dense), rtol=1e-11, atol=1e-11)


def test_apply_plan_step_on_entries_equals_the_masked_step_on_the_vector():
    """The gradient of the trained entries is the whole vector's gradient there."""
    model = TinyViT().double().eval()
    mask = torch.zeros(8, dtype=torch.bool)
    mask[3] = True
    loss = losses(model, images(4, torch.float64)).sum()
    names = ['blocks.0.norm2.weight', 'blocks.1.ls2.gamma', 'blocks.1.mlp.fc2.bias']
    whole = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
    apply_plan(model, plan_from_masks(dict.fromkeys(names, mask)))
    losses(model, images(4, torch.float64)).sum().backward()
    parameters = dict(model.named_parameters())
    for name, gradient in zip(names, whole, strict=True):
        module, _, suffix = name.rpartition('.')
        value = parameters[f'{module}.cdra.{suffix}.value']
        torch.testing.assert_close(value.grad.flatten(), gradient[3:4])


@KINDS
def test_adapters_are_listed_by_target(kind):
    _, model, plan = adapted(kind)
    listed = adapters(model)
    partial = [v.name for v in plan.vectors if v.indices is not None]
    assert set(listed) == {block.name for block in plan.blocks} | set(partial)
    for block in plan.blocks:
        assert tuple(listed[block.name].up.shape) == (len(block.rows), block.rank)
    assert adapters(TinyViT()) == {}


@KINDS
def test_deepcopy_of_an_adapted_model_is_independent(kind):
    _, model, _ = adapted(kind)
    twin = copy.deepcopy(model)
    expected = outputs(model)
    assert torch.equal(outputs(twin), expected)
    move(twin, 9)
    assert torch.equal(outputs(model), expected)
    assert not torch.allclose(outputs(twin), expected)
    loss = losses(twin, images(4, torch.float64)).sum()
    loss.backward()
    assert all(p.grad is None for p in model.parameters())
