"""Gradients of models whose products go through copies: which there are, and what they cost."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core.adapters import copied_linear
from cdra_mm.core.adapters.copied_weights import carriers, choose_product
from tests.core.problems import adapted, by_blocks
from tests.models import images

both = pytest.mark.parametrize('product', ['copied', 'kept'])


def make(product, dtype=torch.float64):
    _, model, _ = adapted('fused', dtype=dtype)
    choose_product(model, product)
    return model


def low_rank(model, path=''):
    ends = ('.down', '.up')
    return [p for n, p in model.named_parameters() if n.startswith(path) and n.endswith(ends)]


def loss_of(model):
    return model(images(2, next(model.parameters()).dtype)[0]).square().sum()


def gradients(model):
    model.zero_grad()
    loss_of(model).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@both
def test_layers_that_a_forward_leaves_out_get_none(product):
    """As with every product: an optimizer does not decay their moments, no hook sees them."""
    results, seen = [], []
    for one in (product, 'factored'):
        model = make(one)
        model.blocks[1].forward = lambda x: x
        for parameter in low_rank(model, 'blocks.1.'):
            parameter.register_hook(seen.append)
            parameter.register_post_accumulate_grad_hook(seen.append)
        results.append(gradients(model))
        assert all(p.grad is None for p in low_rank(model, 'blocks.1.'))
    assert not seen
    torch.testing.assert_close(*results)


@both
def test_layer_that_a_forward_takes_twice(product):
    results = []
    for one in (product, 'factored'):
        model = make(one)
        layer = model.blocks[0].mlp.fc2
        layer.register_forward_hook(lambda m, x, y: y + m.forward(x[0].roll(1, -1)))
        results.append(gradients(model))
    torch.testing.assert_close(*results)


@both
def test_gradients_of_some_factors_alone(product):
    found = []
    for one in (product, 'factored'):
        model = make(one)
        loss, some = loss_of(model), low_rank(model, 'blocks.1.mlp.fc1')
        found.append(torch.autograd.grad(loss, some, retain_graph=True))
        found.append(torch.autograd.grad(loss, some))
    for grads in found[1:]:
        torch.testing.assert_close(grads, found[0])


@both
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


@both
def test_layers_below_the_first_that_is_trained_keep_nothing(product):
    """Gradual unfreezing: their outputs need no gradient, and nothing is saved for one."""
    model = make(product)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_('blocks.1.mlp' in name and name.endswith(('.down', '.up')))
    outputs, saved = [], []
    model.blocks[0].register_forward_hook(lambda m, x, y: outputs.append((y, len(saved))))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss_of(model).backward()
    (y, count), *_ = outputs
    assert not y.requires_grad
    assert count == 0
    assert len(saved) > 0


@both
def test_frozen_factors_save_no_input(monkeypatch, product):
    """Where what lies below is trained, as a prompt is."""
    model = make(product)
    for parameter in low_rank(model):
        parameter.requires_grad_(False)
    taken = []
    plain = copied_linear.columns_apart
    monkeypatch.setattr(
        copied_linear, 'columns_apart', lambda *args: taken.append(args) or plain(*args)
    )
    x = images(2, torch.float64)[0].requires_grad_()
    model(x).square().sum().backward()
    other = make('factored')
    wanted = images(2, torch.float64)[0].requires_grad_()
    other(wanted).square().sum().backward()
    torch.testing.assert_close(x.grad, wanted.grad)
    assert not taken


@both
def test_factors_that_are_unfrozen_by_a_hook_of_the_forward(product):
    """After the copies were made."""
    results = []
    for one in (product, 'factored'):
        model = make(one)
        for parameter in low_rank(model):
            parameter.requires_grad_(False)
        model.blocks[0].register_forward_pre_hook(
            lambda m, x, model=model: [p.requires_grad_() for p in low_rank(model)] and None
        )
        results.append(gradients(model))
    assert all(value is not None for value in results[0].values())
    torch.testing.assert_close(*results)


@both
@pytest.mark.parametrize('reentrant', [False, True])
def test_optimizer_within_the_backward(product, reentrant):
    """With some blocks computed again: each factor is stepped once, when its gradient is there."""
    results = []
    for one in (product, 'factored'):
        model = by_blocks(make(one), reentrant)
        counts = []

        def step(parameter, counts=counts):
            counts.append(parameter)
            parameter.data.sub_(parameter.grad, alpha=0.1)
            parameter.grad = None

        for parameter in low_rank(model):
            parameter.register_post_accumulate_grad_hook(step)
        loss_of(model).backward()
        assert len(counts) == len(low_rank(model))
        results.append([p.detach() for p in low_rank(model)])
    torch.testing.assert_close(*results)


@both
def test_two_losses_with_a_step_between(product):
    """Each over one block; what the second needs was not written to."""
    results = []
    for one in (product, 'factored'):
        model = make(one)
        x = torch.linspace(-1, 1, 2 * 5 * 8, dtype=torch.float64).view(2, 5, 8)
        both_losses = [block(x).square().sum() for block in model.blocks[:2]]
        model(images(2, torch.float64)[0])  # within a model's forward copies are shared
        both_losses[0].backward()
        with torch.no_grad():
            for parameter in low_rank(model, 'blocks.0.'):
                parameter.sub_(parameter.grad, alpha=0.1)
        both_losses[1].backward()
        results.append([p.grad for p in low_rank(model) if p.grad is not None])
    torch.testing.assert_close(*results)


@both
def test_one_gradient_is_written_to_while_another_is_in_a_graph(product):
    """A penalty on a gradient, say, and clipping in place: they lie in one tensor."""
    model = make(product)
    loss_of(model).backward()
    down, up = (p.grad for p in low_rank(model, 'blocks.0.mlp.fc1'))
    factor = torch.ones_like(down).requires_grad_()
    penalty, wanted = (factor * down).sum(), down.clone()
    up.zero_()
    penalty.backward()
    assert torch.equal(factor.grad, wanted)


@both
def test_factors_that_were_written_to_before_the_backward(product):
    model = make(product)
    loss = loss_of(model)
    with torch.no_grad():
        low_rank(model)[0].mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()


def test_bias_adapter_that_a_hook_writes_to_after_the_copies_were_made():
    """An effective bias is computed where it is used."""
    results = []
    for one in ('copied', 'kept', 'factored'):
        model = make(one)
        layers = [m for m in carriers(model) if list(m.cdra.of('bias'))]
        assert layers

        def write(*_, layers=layers):
            for layer in layers:
                for adapter in layer.cdra.of('bias'):
                    with torch.no_grad():
                        adapter.value.add_(0.5)

        with model.blocks[0].register_forward_pre_hook(write):
            results.append(model(images(2, torch.float64)[0]).detach())
    torch.testing.assert_close(results[0], results[2])
    torch.testing.assert_close(results[1], results[2])
