"""A gradient of ours that cannot be differentiated says so; torch's own would be silently wrong."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core.adapters import compact_linear, entries
from cdra_mm.core.adapters.copied_linear import copied_linear
from cdra_mm.core.adapters.joint_blocks import join_blocks
from cdra_mm.core.adapters.layer_copy import Layer
from cdra_mm.core.once_differentiable import once_differentiable

X = torch.randn(3, 4, requires_grad=True)
WEIGHT = torch.randn(5, 4)
BLOCK = torch.tensor([0, 2]), torch.tensor([1, 3]), 1.0
FACTORS = [torch.randn(1, 2, requires_grad=True), torch.randn(2, 1, requires_grad=True)]


def through_a_copy():
    joint = join_blocks([BLOCK], torch.device('cpu'), (5, 4))
    return copied_linear(X, Layer(WEIGHT, None, joint, FACTORS))


def compact(strategy):
    return strategy.apply(X, WEIGHT, None, (BLOCK,), *FACTORS)


def single_entries():
    value = torch.randn(2, requires_grad=True)
    places = entries.place_entries([torch.tensor([1, 7])], WEIGHT.shape[1])
    return entries.entries_linear(X, WEIGHT, None, places, value)


@pytest.mark.parametrize(
    'product',
    [
        through_a_copy,
        lambda: compact(compact_linear._MergedLinear),
        lambda: compact(compact_linear._FactoredLinear),
        single_entries,
    ],
    ids=['copied', 'merged', 'factored', 'entries'],
)
def test_a_second_derivative_is_refused(product):
    (first,) = torch.autograd.grad(product().square().sum(), X, create_graph=True)
    with pytest.raises(RuntimeError, match='differentiate twice'):
        first.sum().backward()


def test_gradients_are_off_in_a_backward_all_the_same():
    seen = []

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        @once_differentiable
        def backward(ctx, dy):
            seen.append(torch.is_grad_enabled())
            return 2 * dy

    for create_graph in (False, True):
        torch.autograd.grad(Doubled.apply(X).square().sum(), X, create_graph=create_graph)
    assert seen == [False, False]
