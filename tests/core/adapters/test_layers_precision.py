"""Adapted layers in bf16 and under autocast: within a stated bound of the exact product."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.core.adapters.test_layers import linear, random_mask


def rounding_bound(x, state, weight):
    """Error of a bf16 sum of bf16 products: a few roundings of what each step adds up to."""
    rows, cols = state['0.cdra.weight.rows'], state['0.cdra.weight.cols']
    up, down = (state[f'0.cdra.weight.{key}'].double().abs() for key in ('up', 'down'))
    size = x.double().abs() @ weight.abs().t() + state['0.bias'].double().abs()
    size[..., rows] += x.double().abs()[..., cols] @ down.t() @ up.t()
    return 2**-7 * size


def wide(dtype):
    """A layer wide enough for rounding errors to add up."""
    return linear(random_mask(48, 64), rank=8, dtype=dtype)


def test_layer_in_bf16_is_within_four_roundings():
    model, weight, bias = wide(torch.bfloat16)
    x = torch.randn(40, 64).bfloat16()
    y = model(x)
    assert y.dtype == torch.bfloat16
    error = (y.double() - F.linear(x.double(), weight, bias)).abs()
    assert bool((error <= rounding_bound(x, model.state_dict(), weight)).all())


def test_layer_under_autocast_is_within_the_bound_of_bf16():
    model, weight, bias = wide(torch.float32)
    x = torch.randn(40, 64, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    error = (y.double() - F.linear(x.double(), weight, bias)).abs()
    # Input and weights are rounded too: twice the bound of layers stored in bf16.
    assert bool((error <= 2 * rounding_bound(x, model.state_dict(), weight)).all())


def test_layer_gradients_under_autocast_are_fp32_and_close():
    model, _, _ = wide(torch.float32)
    x = torch.randn(40, 64, requires_grad=True)
    inputs = [x, *(p for p in model.parameters() if p.requires_grad)]
    grad = torch.randn(40, 48)
    with torch.autocast('cpu', torch.bfloat16):
        y = model(x)
    actual = torch.autograd.grad(y, inputs, grad.to(y.dtype))
    expected = torch.autograd.grad(model(x), inputs, grad)
    for value, wanted in zip(actual, expected, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))


@pytest.mark.parametrize('autocast', [False, True])
def test_layer_does_not_lose_a_change_below_the_rounding_of_the_weight(autocast):
    """``1 + 2^-10`` is 1 in bf16: a forward that adds the change to the weight says zero."""
    dtype = torch.float32 if autocast else torch.bfloat16
    model, _, _ = linear(torch.ones(4, 8, dtype=torch.bool), rank=1, bias=False, dtype=dtype)
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        parameters['0.weight'].fill_(1.0)
        parameters['0.cdra.weight.up'].fill_(2**-10)
        parameters['0.cdra.weight.down'].copy_(torch.tensor([[1.0, -1.0] * 4]))
    x = torch.tensor([[1.0, -1.0] * 4]).to(dtype)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        y = model(x)
    torch.testing.assert_close(y.float(), torch.full((1, 4), 8 * 2**-10), rtol=0.01, atol=0)
