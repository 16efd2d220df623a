"""SPT in training: its modules and entries against plain ones, and their way to a file and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cdra_mm.core import (
    PlanError,
    adapters,
    apply_plan,
    count_parameters,
    find_targets,
    merge_adapters,
)
from cdra_mm.methods import Request, make_method
from tests.methods.adapted import come_back
from tests.models import TinyViT
from tests.reference.layers import dense_model

from .test_spt import CALLED, FORMULAS, MODELS, decide


def moved(model):
    """Every trained value somewhere else, as after some steps."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize('kind', FORMULAS)
@pytest.mark.parametrize('model', CALLED)
def test_spt_starts_at_the_base_and_comes_back_from_a_state_dict_and_a_file(kind, model, tmp_path):
    base = MODELS[model]().double().eval()
    plan = decide(base, kind, num_sensitive=350, alpha=1.2)
    assert plan.sparse and (plan.blocks or plan.parts)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    adapted = apply_plan(copy.deepcopy(base), plan).eval()
    torch.testing.assert_close(adapted(x), base(x))
    assert count_parameters(adapted)[0] == plan.num_trainable
    moved(adapted)
    y = adapted(x)
    assert not torch.allclose(y, base(x))
    for other in come_back(base, adapted, plan, tmp_path):
        assert torch.equal(other(x), y)
    if kind == 'spt_lora':
        merge_adapters(adapted)
        plain = copy.deepcopy(base)
        plain.load_state_dict(adapted.state_dict())
        torch.testing.assert_close(plain(x), y)
    else:
        with pytest.raises(PlanError, match='do not merge into plain weights'):
            merge_adapters(adapted)


@pytest.mark.parametrize('model', MODELS)
def test_spt_lora_equals_dense_weights_with_the_gradients_of_its_entries(model):
    base = MODELS[model]().double().eval()
    adapted = moved(apply_plan(copy.deepcopy(base), decide(base, num_sensitive=350, alpha=1.2)))
    whole = {v.name for v in decide(base, num_sensitive=350, alpha=1.2).vectors}
    dense = dense_model(base, adapted.state_dict())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    y, expected = adapted(x), dense(x)
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    y.backward(seed)
    expected.backward(seed)
    seen = set()
    for name, adapter in adapters(adapted).items():
        target = find_targets(base)[name]
        grad = dense.get_parameter(target.path).grad[target.start : target.stop]
        if hasattr(adapter, 'value'):
            torch.testing.assert_close(adapter.value.grad, grad.flatten()[adapter.index])
        else:
            torch.testing.assert_close(adapter.up.grad, grad @ adapter.down.t())
        seen.add(type(adapter).__name__)
    assert seen == {'LowRank', 'Entries'} and whole
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)


class OneLayer(nn.Module):
    """A fused qkv in a block, nothing else."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict(dict(qkv=nn.Linear(4, 12)))])

    def forward(self, x):
        return self.blocks[0]['qkv'](x)


def pairs(sequence, adapter, i, of=lambda p: p):
    """The values of a plain bottleneck with those of the i-th of two slices."""
    ours = (adapter.down, adapter.down_bias, adapter.up, adapter.up_bias)
    return zip(sequence.parameters(), (of(p).chunk(2)[i] for p in ours), strict=True)


def test_spt_adapter_equals_a_plain_bottleneck_on_the_parts_that_have_one():
    """Of a fused layer, q and v pass through their own bottlenecks, k does not."""
    torch.manual_seed(1)
    base = OneLayer().double()
    weight = 'blocks.0.qkv.weight'
    masks = {f'{weight}:{part}': torch.ones(4, 4, dtype=torch.bool) for part in 'vq'}
    masks[f'{weight}:k'] = torch.zeros(4, 4, dtype=torch.bool)
    method = make_method({'type': 'spt_adapter', 'rank': 3, 'dropout': 0.0})
    plan = method.plan_from_masks(Request(base), masks.items())
    assert plan.num_trainable == 2 * (4 * 3 + 3 + 3 * 4 + 4)
    model = apply_plan(copy.deepcopy(base), plan)
    (adapter,) = adapters(model).values()
    bound = 1 / 4**0.5
    assert bool((adapter.down.abs() <= bound).all()) and adapter.down.std() > bound / 4
    moved(model)
    plain = [nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 4)).double() for _ in range(2)]
    for i, sequence in enumerate(plain):
        with torch.no_grad():
            for plain_value, value in pairs(sequence, adapter, i):
                plain_value.copy_(value)
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    q, k, v = base(x).detach().chunk(3, -1)
    expected = torch.cat([q + plain[0](q), k, v + plain[1](v)], -1)
    y = model(x)
    torch.testing.assert_close(y, expected)
    F.mse_loss(y, torch.zeros_like(y)).backward()
    F.mse_loss(expected, torch.zeros_like(y)).backward()
    for i, sequence in enumerate(plain):
        for plain_value, value in pairs(sequence, adapter, i, of=lambda p: p.grad):
            torch.testing.assert_close(value, plain_value.grad)


@pytest.mark.parametrize('kind', FORMULAS)
def test_spt_modules_drop_inputs_in_training_only(kind):
    base = TinyViT(drop=0.0)
    model = moved(apply_plan(base, decide(base, kind, num_sensitive=900, dropout=0.5)))
    x = torch.randn(2, 3, 8, 8)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
