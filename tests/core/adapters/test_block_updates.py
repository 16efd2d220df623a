"""The node that takes the gradients of all factors of those of the blocks."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core.adapters import block_updates as module
from cdra_mm.core.adapters.block_updates import block_updates
from cdra_mm.core.adapters.copied_weights import carriers, choose_product
from cdra_mm.core.adapters.joint_blocks import join_blocks
from cdra_mm.core.adapters.layer_copy import Layer
from cdra_mm.core.model.graph import nodes_of
from tests.core.problems import adapted
from tests.models import images


def make(product='copied'):
    _, model, _ = adapted('fused', dtype=torch.float64)
    choose_product(model, product)
    return model


def gradients(model):
    model.zero_grad()
    y = model(images(2, torch.float64)[0])
    y.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def layers(count, generator):
    made = []
    for _ in range(count):
        weight = torch.randn(6, 5, dtype=torch.float64, generator=generator)
        rows, cols = torch.tensor([0, 2, 5]), torch.tensor([1, 2])
        joint = join_blocks([(rows, cols, 0.5)], weight.device, (6, 5))
        shapes = [(2, 2), (3, 2)]
        factors = [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]
        made.append(Layer(weight, None, joint, [f.requires_grad_() for f in factors]))
    return made


def test_one_node_serves_all_layers():
    model = make()
    y = model(images(2, torch.float64)[0])
    names = [node.name() for node in nodes_of(y)]
    assert sum('_CopiedLinear' in name for name in names) > 5
    assert sum('_BlockUpdates' in name for name in names) == 1


def test_updates_take_no_memory():
    (first, second) = block_updates(layers(2, torch.Generator()), torch.bfloat16, kept=False)
    for update in (*first.inputs, *second.inputs):
        assert update.shape == (3, 2)
        assert update.dtype == torch.bfloat16
        assert update.untyped_storage().nbytes() == update.element_size()


def test_gradients_are_those_of_the_products_of_the_factors():
    """Of a layer that none asks for, there are none."""
    used, unused, twice = made = layers(3, torch.Generator().manual_seed(0))
    a, _, b = (one.inputs[0] for one in block_updates(made, torch.float64, kept=False))
    given = [torch.randn(3, 2, dtype=torch.float64) for _ in range(3)]
    torch.autograd.backward([a, b, b], given)
    for layer, gradient in ((used, given[0]), (twice, given[1] + given[2])):
        down, up = layer.factors
        wanted = torch.autograd.grad(0.5 * up @ down, [down, up], gradient)
        torch.testing.assert_close([down.grad, up.grad], list(wanted))
    assert [factor.grad for factor in unused.factors] == [None, None]


def test_layers_that_a_forward_leaves_out_get_none():
    """As with every product: their moments are not decayed by an optimizer."""
    results = []
    for product in ('copied', 'kept', 'factored'):
        model = make(product)
        model.blocks[1].forward = lambda x: x
        results.append(gradients(model))
    left_out = [name for name in results[0] if name.startswith('blocks.1.') and 'cdra' in name]
    assert left_out
    assert all(found[name] is None for found in results for name in left_out)
    for found in results[:2]:
        torch.testing.assert_close(found, results[2])


@pytest.mark.parametrize('product', ['copied', 'kept'])
def test_layer_that_a_forward_takes_twice(product):
    results = []
    for one in (product, 'factored'):
        model = make(one)
        layer = model.blocks[0].mlp.fc2
        layer.register_forward_hook(lambda m, x, y: y + m.forward(x[0].roll(1, -1)))
        results.append(gradients(model))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('product', ['copied', 'kept'])
def test_gradients_of_some_factors_alone(product):
    found = []
    for one in (product, 'factored'):
        model = make(one)
        y = model(images(2, torch.float64)[0]).square().sum()
        some = [p for name, p in model.named_parameters() if name.endswith('fc1.cdra.weight.up')]
        found.append(torch.autograd.grad(y, some, retain_graph=True))
        found.append(torch.autograd.grad(y, some))
    for grads in found[1:]:
        torch.testing.assert_close(grads, found[0])


@pytest.mark.parametrize('product', ['copied', 'kept'])
def test_factors_that_are_not_trained(product):
    results = []
    for one in (product, 'factored'):
        model = make(one)
        for name, parameter in model.named_parameters():
            if name.endswith('.down') or ('blocks.0' in name and name.endswith('.up')):
                parameter.requires_grad_(False)
        results.append(gradients(model))
    assert any(name.endswith('.up') for name in results[0])
    torch.testing.assert_close(*results)


def test_factors_that_were_written_to_before_the_backward_are_named():
    model = make()
    loss = model(images(2, torch.float64)[0]).square().sum()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith('.up')).mul_(2)
    with pytest.raises(
        RuntimeError, match='modified in place after the forward .* run the backward'
    ):
        loss.backward()


def test_no_updates_where_no_gradients_are_asked_for(monkeypatch):
    called = []
    monkeypatch.setattr(module._BlockUpdates, 'apply', lambda *args: called.append(args))
    with torch.no_grad():
        make()(images(2, torch.float64)[0])
    assert not called


def test_widths_of_one_layer_that_go_different_ways(monkeypatch):
    """Of q, k and v one block may be small and another large."""
    model, other = make(), make('factored')
    fused = next(m for m in carriers(model) if len(list(m.cdra.of('weight'))) > 1)
    sizes = sorted(a.up.shape[0] * a.down.shape[1] for a in fused.cdra.of('weight'))
    assert sizes[0] < sizes[-1]
    monkeypatch.setattr(module, 'LARGEST_BLOCK', sizes[-1] - 1)
    torch.testing.assert_close(gradients(model), gradients(other))
