"""Eq. 6 in one layer: values, gradients, precision, and the shapes of real inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from cdra_mm.core import apply_plan, find_targets, plan_from_masks
from cdra_mm.core.adapters.low_rank import LowRank
from tests.core.planning.test_compaction import masks
from tests.core.problems import move
from tests.models import TinyViT
from tests.reference.layers import dense_state

IN, OUT = 7, 9


def random_mask(o=OUT, i=IN, seed=0, density=0.5):
    """A mask with some empty rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(o, i, generator=generator) < 0.6
    mask &= torch.rand(o, 1, generator=generator) < density
    mask &= torch.rand(1, i, generator=generator) < density
    mask[0, 0] = True
    return mask


def linear(mask, *, rank=2, bias=True, dtype=torch.float64, bias_mask=None, moved=True):
    """``Sequential(Linear)`` with its only weight adapted, and its dense weight and bias."""
    base = nn.Linear(mask.shape[1], mask.shape[0], bias=bias, dtype=dtype)
    model = nn.Sequential(base)
    chosen = {'0.weight': mask}
    if bias_mask is not None:
        chosen['0.bias'] = bias_mask
    apply_plan(model, plan_from_masks(chosen, rank_rule=rank))
    if moved:
        move(model)
    dense = dense_state(
        {k: v.double() for k, v in model.state_dict().items() if v.is_floating_point()}
        | {k: v for k, v in model.state_dict().items() if not v.is_floating_point()}
    )
    return model, dense['0.weight'], dense.get('0.bias')


@given(mask=masks(), rank=st.integers(1, 4), bias=st.booleans())
def test_layer_equals_the_dense_product(mask, rank, bias):
    model, weight, offset = linear(mask, rank=rank, bias=bias)
    x = torch.randn(3, mask.shape[1], dtype=torch.float64)
    torch.testing.assert_close(model(x), F.linear(x, weight, offset), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model[0].weight, weight, rtol=1e-12, atol=1e-12)


@given(mask=masks(), rank=st.integers(1, 4), bias=st.booleans())
def test_layer_gradients_equal_those_of_the_dense_product(mask, rank, bias):
    """The chain rule through ``W + scatter(up @ down)``, written with index_put."""
    model, _, _ = linear(mask, rank=rank, bias=bias)
    layer = dict(model[0].named_parameters())
    rows, cols = (model.state_dict()[f'0.cdra.weight.{key}'] for key in ('rows', 'cols'))
    x = torch.randn(2, 3, mask.shape[1], dtype=torch.float64, requires_grad=True)
    up, down = layer['cdra.weight.up'], layer['cdra.weight.down']
    weight = layer['weight'].index_put((rows[:, None], cols[None]), up @ down, accumulate=True)
    expected = F.linear(x, weight, layer.get('bias'))
    grad = torch.randn_like(expected)
    inputs = [x, up, down]
    for actual, wanted in zip(
        torch.autograd.grad(model(x), inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('needs_input', [True, False])
def test_layer_passes_gradcheck(needs_input):
    model, _, _ = linear(random_mask(), bias_mask=torch.arange(OUT) == 4)
    x = torch.randn(2, 3, IN, dtype=torch.float64, requires_grad=needs_input)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(trainable) == 3
    assert torch.autograd.gradcheck(lambda x, *_: model(x), (x, *trainable))


def test_layer_with_whole_bias_passes_gradcheck():
    model, _, _ = linear(random_mask(), bias_mask=torch.ones(OUT, dtype=torch.bool))
    x = torch.randn(4, IN, dtype=torch.float64, requires_grad=True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {tuple(p.shape) for p in trainable} >= {(OUT,)}
    assert torch.autograd.gradcheck(lambda x, *_: model(x), (x, *trainable))


@pytest.mark.parametrize(
    'shape', [(IN,), (1, IN), (5, IN), (2, 3, IN), (2, 3, 4, IN), (0, IN), (2, 0, IN)]
)
def test_layer_takes_any_number_of_leading_dimensions(shape):
    model, weight, bias = linear(random_mask())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = model(x)
    torch.testing.assert_close(y, F.linear(x, weight, bias), rtol=1e-12, atol=1e-12)
    y.sum().backward()
    assert x.grad.shape == x.shape
    if not x.numel():
        assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def strided(x):
    return torch.stack([x, -x], -1)[..., 0]


@pytest.mark.parametrize(
    'layout',
    [
        strided,
        lambda x: x.transpose(0, 1),
        lambda x: x[:1].expand(4, -1, -1),
        lambda x: x.permute(1, 0, 2)[::2],
    ],
    ids=['strided', 'transposed', 'expanded', 'every other'],
)
def test_layer_takes_inputs_that_are_not_contiguous(layout):
    model, weight, bias = linear(random_mask())
    x = torch.randn(3, 4, IN, dtype=torch.float64, requires_grad=True)
    actual, expected = model(layout(x)), F.linear(layout(x), weight, bias)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, x, grad), torch.autograd.grad(expected, x, grad)
    )
    assert torch.autograd.gradcheck(
        lambda x, *_: model(layout(x)), (x, *[p for p in model.parameters() if p.requires_grad])
    )


def test_layer_gradient_of_an_expanded_output():
    """``sum()`` hands the backward a gradient with zero strides."""
    model, weight, _ = linear(random_mask())
    x = torch.randn(5, IN, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(5, -1), rtol=1e-12, atol=1e-12)


def test_layer_gradients_accumulate_over_two_calls():
    model, _, _ = linear(random_mask())
    x, y = torch.randn(2, 4, IN, dtype=torch.float64)
    trainable = [p for p in model.parameters() if p.requires_grad]
    separate = [torch.autograd.grad(model(v).pow(2).sum(), trainable) for v in (x, y)]
    (model(x).pow(2).sum() + model(y).pow(2).sum()).backward()
    for parameter, a, b in zip(trainable, *separate, strict=True):
        torch.testing.assert_close(parameter.grad, a + b, rtol=1e-12, atol=1e-12)


def test_layer_base_weight_gets_no_gradient():
    model, _, _ = linear(random_mask())
    model(torch.randn(4, IN, dtype=torch.float64)).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        '0.cdra.weight.up',
        '0.cdra.weight.down',
    }


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_layer_fresh_output_equals_the_base(dtype):
    model, _, _ = linear(random_mask(), dtype=dtype, moved=False, bias_mask=torch.arange(OUT) == 2)
    state = model.state_dict()
    x = torch.randn(4, 6, IN).to(dtype)
    base = F.linear(x, state['0.weight'], state['0.bias'])
    torch.testing.assert_close(model(x), base, rtol=1e-6, atol=1e-6)
    assert torch.equal(model[0].weight, state['0.weight'])


def test_layer_fresh_output_outside_the_rows_is_the_base_bit_for_bit():
    mask = random_mask()
    model, _, _ = linear(mask, dtype=torch.float32)
    state = model.state_dict()
    x = torch.randn(16, IN)
    base = F.linear(x, state['0.weight'], state['0.bias'])
    outside = ~mask.any(1)
    assert outside.any()
    torch.testing.assert_close(model(x)[:, outside], base[:, outside], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(model(x)[:, ~outside], base[:, ~outside])


def test_layer_under_no_grad_and_inference_mode_equals_training():
    model, _, _ = linear(random_mask())
    x = torch.randn(4, IN, dtype=torch.float64)
    expected = model(x).detach()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.eval()(x), expected, rtol=1e-12, atol=1e-12)


def test_layer_follows_its_factors_when_they_change():
    """No stale copy after a step, an in-place edit, or a loaded state."""
    model, _, _ = linear(random_mask())
    x = torch.randn(4, IN, dtype=torch.float64)
    model(x)
    for change in (
        lambda: move(model, 5),
        lambda: [p.data.mul_(1.5) for p in model.parameters() if p.requires_grad],
        lambda: model.load_state_dict(
            {k: v * 2 if k.endswith('up') else v for k, v in model.state_dict().items()}
        ),
    ):
        change()
        dense = dense_state(model.state_dict())
        expected = F.linear(x, dense['0.weight'], dense['0.bias'])
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_layer_adapts_a_subclass_of_linear_and_keeps_its_own_forward():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(IN, OUT, dtype=torch.float64))
    apply_plan(model, plan_from_masks({'0.weight': random_mask()}, rank_rule=2))
    move(model)
    assert isinstance(model[0], Doubled)
    dense = dense_state(model.state_dict())
    x = torch.randn(4, IN, dtype=torch.float64)
    expected = 2 * F.linear(x, dense['0.weight'], dense['0.bias'])
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_layer_whose_weight_is_read_functionally_uses_the_change():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(IN, OUT, dtype=torch.float64)

        def forward(self, x):
            return x @ self.inner.weight.t() + self.inner.bias

    model = Reader()
    apply_plan(model, plan_from_masks({'inner.weight': random_mask()}, rank_rule=2))
    move(model)
    dense = dense_state(model.state_dict())
    x = torch.randn(4, IN, dtype=torch.float64, requires_grad=True)
    expected = F.linear(x, dense['inner.weight'], dense['inner.bias'])
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(trainable) == 2
    assert torch.autograd.gradcheck(lambda x, *_: model(x), (x, *trainable))


@pytest.mark.parametrize(
    ('rows', 'run'),
    [([0, 1, 2, 3], slice(4, 8)), ([2, 3], slice(6, 8)), ([1], slice(5, 6)), ([1, 0], None)],
)
def test_rows_that_follow_each_other_are_a_slice_of_the_whole_weight(rows, run):
    """Of k, the second quarter of a fused weight."""
    model = TinyViT(dim=4)
    target = find_targets(model)['blocks.0.attn.qkv.weight:k']
    weight = model.blocks[0].attn.qkv.weight
    adapter = LowRank(target, weight, torch.tensor(rows), torch.arange(4), 2, scale=0.5)
    taken, cols, scale = adapter.block
    assert (cols, scale) == (slice(0, 4), 0.5)
    assert taken == run if run else taken.tolist() == [4 + row for row in rows]


def test_layer_follows_the_rows_that_a_state_dict_brings():
    """A run that was found at first does not stay where other rows are loaded."""
    mask = torch.zeros(OUT, IN, dtype=torch.bool)
    mask[2:5] = True
    model, _, _ = linear(mask)
    x = torch.randn(4, IN, dtype=torch.float64)
    for rows in ([7, 1, 4], [5, 6, 7]):
        state = {**model.state_dict(), '0.cdra.weight.rows': torch.tensor(rows)}
        model.load_state_dict(state)
        dense = dense_state(state)
        expected = F.linear(x, dense['0.weight'], dense['0.bias'])
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model[0].weight, dense['0.weight'], rtol=1e-12, atol=1e-12)
