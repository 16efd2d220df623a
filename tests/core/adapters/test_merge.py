"""Merging: the same outputs from plain weights, there and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cdra_mm.core import (
    CDRAError,
    adapters,
    build_adapters,
    merge_adapters,
    remove_adapters,
    unmerge_adapters,
)
from tests.core.problems import adapted, move, outputs
from tests.models import MODELS, images, losses
from tests.reference.layers import dense_state

KINDS = pytest.mark.parametrize('kind', MODELS)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize('dtype', TOLERANCE, ids=str)


@DTYPES
@KINDS
def test_merge_preserves_the_output(kind, dtype):
    _, model, _ = adapted(kind, dtype=dtype)
    expected = outputs(model, dtype)
    merge_adapters(model)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(outputs(model, dtype), expected, rtol=tolerance, atol=tolerance)
    with_grad = model(images(3, dtype)[0]).detach()
    torch.testing.assert_close(with_grad, expected, rtol=tolerance, atol=tolerance)


@KINDS
def test_merge_is_idempotent(kind):
    _, model, _ = adapted(kind)
    merge_adapters(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    output = outputs(model)
    merge_adapters(model)
    assert torch.equal(outputs(model), output)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@DTYPES
@KINDS
def test_unmerge_gives_back_what_was(kind, dtype):
    """Within an ulp or two of the larger of weight and merged weight."""
    _, model, _ = adapted(kind, dtype=dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = outputs(model, dtype)
    merge_adapters(model)
    unmerge_adapters(model)
    after = model.state_dict()
    assert list(after) == list(before)
    bound = 8 * torch.finfo(dtype).eps
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=bound, atol=bound, msg=key)
        if '.cdra.' in key:
            assert torch.equal(after[key], value), key
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(outputs(model, dtype), expected, rtol=tolerance, atol=tolerance)
    unmerge_adapters(model)
    assert all(torch.equal(after[key], value) for key, value in model.state_dict().items())


def test_unmerge_many_times_does_not_drift():
    _, model, _ = adapted('fused', dtype=torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in range(50):
        merge_adapters(model)
        unmerge_adapters(model)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-5, atol=1e-5)


@KINDS
def test_remove_after_merge_leaves_the_stock_model(kind):
    """Plain classes, the base's keys, and a checkpoint that the stock model loads strictly."""
    base, model, _ = adapted(kind)
    expected = outputs(model)
    wanted = dense_state(model.state_dict())
    merge_adapters(model)
    remove_adapters(model)
    state = model.state_dict()
    assert list(state) == list(base.state_dict())
    for (name, module), (_, plain) in zip(model.named_modules(), base.named_modules(), strict=True):
        assert type(module) is type(plain), name
    for key, value in wanted.items():
        torch.testing.assert_close(state[key], value, rtol=1e-12, atol=1e-12)
    assert adapters(model) == {}
    stock = MODELS[kind]().double().eval()
    stock.load_state_dict(state, strict=True)
    torch.testing.assert_close(outputs(stock), expected, rtol=1e-10, atol=1e-10)
    for _, module in model.named_modules():
        for parameter in module._parameters.values():
            assert parameter is None or isinstance(parameter, nn.Parameter)


@KINDS
def test_remove_refuses_to_lose_unmerged_adapters(kind):
    _, model, _ = adapted(kind)
    expected = outputs(model)
    first = next(iter(adapters(model)))
    with pytest.raises(CDRAError, match=rf'\(the first is {first}\).*discard=True'):
        remove_adapters(model)
    assert torch.equal(outputs(model), expected)


@KINDS
def test_remove_with_discard_gives_back_the_base(kind):
    base, model, plan = adapted(kind)
    whole = {v.name for v in plan.vectors if v.indices is None} | set(plan.also_train)
    remove_adapters(model, discard=True)
    state = model.state_dict()
    assert list(state) == list(base.state_dict())
    for key, value in base.state_dict().items():
        assert torch.equal(state[key], value) or key in whole, key


def test_remove_of_a_plain_model_does_nothing():
    base, _, _ = adapted('fused')
    expected = outputs(base)
    remove_adapters(base)
    assert torch.equal(outputs(base), expected)


def test_merge_of_a_plain_model_does_nothing():
    base, _, _ = adapted('fused')
    expected = outputs(base)
    merge_adapters(base)
    unmerge_adapters(base)
    assert torch.equal(outputs(base), expected)


def test_merge_leaves_frozen_weights_alone():
    _, model, plan = adapted('fused')
    touched = {r.name.split(':')[0] for r in (*plan.blocks, *plan.vectors)}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    merge_adapters(model)
    for key, value in model.state_dict().items():
        if key not in touched:
            assert torch.equal(value, before[key]), key


@KINDS
def test_merged_state_dict_loaded_elsewhere_does_not_add_the_change_twice(kind):
    """A checkpoint written while merged (an EMA, a validation hook) is the same model."""
    base, model, _ = adapted(kind)
    expected = outputs(model)
    merge_adapters(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    build_adapters(base, state)
    base.load_state_dict(state)
    torch.testing.assert_close(outputs(base), expected, rtol=1e-10, atol=1e-10)


@KINDS
def test_state_dict_loaded_while_merged_is_what_the_model_then_is(kind):
    """Loading into a merged model must not leave the old change in the new weights."""
    _, model, _ = adapted(kind)
    other = copy.deepcopy(model)
    move(other, 11)
    expected = outputs(other)
    merge_adapters(model)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(outputs(model), expected, rtol=1e-10, atol=1e-10)
    unmerge_adapters(model)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-10, atol=1e-10)


@KINDS
def test_plain_state_dict_is_not_enough_for_an_adapted_model(kind):
    """Only a merged model takes it: an unmerged one would keep its change unsaid."""
    base, model, _ = adapted(kind)
    with pytest.raises(RuntimeError, match=r'(?s)Missing key.*\.cdra\.'):
        model.load_state_dict(base.state_dict())
    merge_adapters(model)
    model.load_state_dict(base.state_dict())
    torch.testing.assert_close(outputs(model), outputs(base))


def test_merge_then_unmerge_goes_on_training():
    _, model, _ = adapted('fused')
    merge_adapters(model)
    unmerge_adapters(model)
    losses(model, images(4, torch.float64)).sum().backward()
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(trainable) > 20
    assert all(p.grad is not None for p in trainable)


def test_merged_deepcopy_unmerges_on_its_own():
    _, model, _ = adapted('fused')
    expected = outputs(model)
    merge_adapters(model)
    twin = copy.deepcopy(model)
    unmerge_adapters(twin)
    move(twin)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(outputs(twin), expected)
