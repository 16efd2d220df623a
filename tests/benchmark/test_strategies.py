"""Every strategy is taken as named, and each is timed beside the frozen weight."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.benchmark import strategies
from cdra_mm.benchmark.strategies import STRATEGIES, compare_strategies, taking
from cdra_mm.core.adapters import compact_linear as product

from .tiny import tiny_case


@pytest.mark.parametrize(
    ('strategy', 'function'),
    [
        ('merged, through the block', '_MergedLinear'),
        ('merged, through the factors', '_MergedLinear'),
        ('factored', '_FactoredLinear'),
    ],
)
def test_strategy_is_taken_and_put_back(strategy, function):
    before = product.takes_merged, product.SMALL_BLOCK
    x = torch.randn(4, 3, requires_grad=True)
    block = (torch.tensor([0, 1]), torch.tensor([2, 0]), 1.0)
    factors = [torch.randn(1, 2), torch.randn(2, 1)]
    with taking(strategy):
        y = product.compact_linear(x, torch.randn(5, 3), None, [block], factors)
        assert (product.SMALL_BLOCK > 0) is ('block' in strategy)
    assert function in str(y.grad_fn.next_functions[0][0]) + str(y.grad_fn)
    assert (product.takes_merged, product.SMALL_BLOCK) == before


def test_record_has_every_strategy_and_kind(monkeypatch):
    shapes = []
    products = strategies._products

    def noted(case, layers):
        shapes.append([type(layer).__name__ for layer in layers])
        return products(case, layers)

    monkeypatch.setattr(strategies, '_products', noted)
    record = compare_strategies(tiny_case())
    ways = [*STRATEGIES, 'copied']
    names = [f'{kind}: {way}' for kind in ('paper', 'spt') for way in ways]
    assert list(record['candidates']) == ['frozen', *names]
    assert shapes == [['Linear'] * 4, *[['AdaptedLinear'] * 4] * 4]
    for entry in record['candidates'].values():
        assert len(entry['seconds_all']) == 2 and entry['ratio_vs_frozen'] > 0
