"""One parameter in several modules: what is planned on it acts on every use, as merging it does."""

from __future__ import annotations

import copy

import pytest
import torch

from cdra_mm.core import (
    apply_plan,
    build_adapters,
    find_targets,
    load_adapter,
    merge_adapters,
    plan_from_masks,
    remove_adapters,
    save_adapter,
    unmerge_adapters,
)
from tests.core.problems import move, outputs, random_masks
from tests.models import MODELS

MATRIX = 'blocks.0.mlp.fc1.weight'
VECTOR = 'blocks.0.norm1.weight'
EXACT = dict(rtol=1e-10, atol=1e-10)


def tied():
    """The second block's FFN and a norm of it use the first block's parameters."""
    torch.manual_seed(0)
    model = MODELS['fused']().double().eval()
    first, second = model.blocks[0], model.blocks[1]
    second.mlp.fc1.weight = first.mlp.fc1.weight
    second.norm2.weight = first.norm1.weight
    return model


def adapted():
    model = tied()
    masks = random_masks(model)
    masks[VECTOR] = torch.arange(len(masks[VECTOR])) == 1  # a single entry, not the whole vector
    plan = plan_from_masks(masks, rank_rule=2, beta=2)
    assert MATRIX in {block.name for block in plan.blocks}
    assert {v.name: v.indices for v in plan.vectors}[VECTOR] == (1,)
    apply_plan(model, plan)
    move(model)
    return model


def dense(model):
    """A plain model with the effective weights: read once, and put where they are shared."""
    plain = tied()
    values = {}
    for path, module in model.named_modules():
        for name in module._parameters:
            key = f'{path}.{name}' if path else name
            if '.cdra.' not in key and getattr(module, name) is not None:
                values[key] = getattr(module, name).detach().clone()
    shared = {'blocks.1.mlp.fc1.weight': MATRIX, 'blocks.1.norm2.weight': VECTOR}
    for key, first in shared.items():
        assert torch.equal(values[key], values[first]), key
    plain.load_state_dict(values)
    return plain


def test_tied_parameter_is_one_target():
    targets = find_targets(tied())
    assert MATRIX in targets and VECTOR in targets
    assert not {'blocks.1.mlp.fc1.weight', 'blocks.1.norm2.weight'} & set(targets)


def test_tied_parameter_is_adapted_in_every_use():
    model = adapted()
    expected = outputs(dense(model))
    assert float((expected - outputs(tied())).abs().max()) > 1e-2
    torch.testing.assert_close(outputs(model), expected, **EXACT)
    twin = copy.deepcopy(model)
    move(twin, 5)
    torch.testing.assert_close(outputs(twin), outputs(dense(twin)), **EXACT)
    torch.testing.assert_close(outputs(model), expected, **EXACT)


def test_tied_parameter_gives_its_adapter_the_gradient_of_both_uses():
    model = adapted()
    factor = model.blocks[0].mlp.fc1.cdra._modules['weight'].up
    with torch.enable_grad():
        loss = lambda: model(torch.ones(2, 3, 8, 8, dtype=torch.float64)).pow(2).sum()  # noqa: E731
        (gradient,) = torch.autograd.grad(loss(), factor)
    step = torch.zeros_like(factor)
    step[0, 0] = 1e-6
    with torch.no_grad():
        factor += step
        above = float(loss())
        factor -= 2 * step
        below = float(loss())
    assert float(gradient[0, 0]) == pytest.approx((above - below) / 2e-6, rel=1e-4)


def test_tied_parameter_is_merged_once():
    model = adapted()
    expected = outputs(model)
    merge_adapters(model)
    torch.testing.assert_close(outputs(model), expected, **EXACT)
    unmerge_adapters(model)
    torch.testing.assert_close(outputs(model), expected, **EXACT)
    merge_adapters(model)
    remove_adapters(model)
    assert list(model.state_dict()) == list(tied().state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in tied().modules()]
    stock = tied()
    stock.load_state_dict(model.state_dict())
    torch.testing.assert_close(outputs(stock), expected, **EXACT)


def test_tied_adapter_stands_once_in_a_state_dict_and_comes_back(tmp_path):
    model = adapted()
    expected, state = outputs(model), model.state_dict()
    assert not any(key.startswith('blocks.1.mlp.fc1.cdra') for key in state)
    other = tied()
    build_adapters(other, state)
    other.load_state_dict(state)
    torch.testing.assert_close(outputs(other), expected, **EXACT)
    save_adapter(model, tmp_path / 'a.safetensors')
    third = tied()
    load_adapter(third, tmp_path / 'a.safetensors')
    torch.testing.assert_close(outputs(third), expected, **EXACT)
