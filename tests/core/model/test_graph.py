"""What the graph tells of a result is what its backward pass would do."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cdra_mm.core.model.graph import leaves_of


def names(model, result):
    found = leaves_of(result)
    return None if found is None else {n for n, p in model.named_parameters() if id(p) in found}


def moved(model, result):
    result.backward()
    return {n for n, p in model.named_parameters() if p.grad is not None}


def model():
    layers = [nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2)]
    made = nn.Sequential(*layers)
    made[0].bias.requires_grad_(False)
    return made


def test_leaves_are_those_that_a_backward_pass_reaches():
    net, x = model(), torch.randn(2, 3)
    hidden = net[1](net[0](x))
    with torch.no_grad():
        aside = net[2](hidden)
    result = (hidden + aside).sum() + net[3](hidden.detach()).sum() * 0
    found = names(net, result)
    assert found == moved(net, result)
    assert found == {'0.weight', '1.weight', '1.bias', '3.weight', '3.bias'}


def test_checkpointing_that_keeps_the_graph_is_seen_through():
    net, x = model(), torch.randn(2, 3)
    result = checkpoint(net, x, use_reentrant=False).sum()
    assert names(net, result) == moved(net, result)


def test_graph_that_hides_weights_is_no_answer():
    net, x = model(), torch.randn(2, 3, requires_grad=True)
    result = net[3](checkpoint(net[:3], x, use_reentrant=True)).sum()
    assert leaves_of(result) is None
    assert '0.weight' in moved(net, result)


def test_result_without_a_graph_has_no_leaves():
    assert leaves_of(torch.ones(())) == set()
