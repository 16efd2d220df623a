"""Gradients of models whose products go through copies: which there are, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdra_mm.core.adapters import copied_linear
from cdra_mm.core.adapters.copied_weights import carriers, choose_product
from tests.core.problems import adapted, by_blocks
from tests.models import images

both = pytest.mark.parametrize('product', ['copied', 'kept'])


def make(product):
    _, model, _ = adapted('fused', dtype=torch.float64)
    choose_product(model, product)
    return model


def low_rank(model, path=''):
    ends = ('.down', '.up')
    return [p for n, p in model.named_parameters() if n.startswith(path) and n.endswith(ends)]


def loss_of(model):
    return model(images(2, torch.float64)[0]).square().sum()


def gradients(model):
    model.zero_grad()
    loss_of(model).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def of_both(product, measure):
    """What a model gives by a product, after it was compared with that of the factored one."""
    found, wanted = (measure(make(one)) for one in (product, 'factored'))
    torch.testing.assert_close(found, wanted)
    return found


@both
def test_layers_that_a_forward_leaves_out_get_none(product):
    """As with every product: an optimizer does not decay their moments, no hook sees them."""
    seen = []

    def without_a_block(model):
        model.blocks[1].forward = lambda x: x
        for parameter in low_rank(model, 'blocks.1.'):
            parameter.register_hook(seen.append)
            parameter.register_post_accumulate_grad_hook(seen.append)
        found = gradients(model)
        assert all(p.grad is None for p in low_rank(model, 'blocks.1.'))
        return found

    of_both(product, without_a_block)
    assert not seen


@both
def test_layer_that_a_forward_takes_twice(product):
    def twice(model):
        layer = model.blocks[0].mlp.fc2
        layer.register_forward_hook(lambda m, x, y: y + m.forward(x[0].roll(1, -1)))
        return gradients(model)

    of_both(product, twice)


@both
def test_activation_that_writes_to_its_input(product):
    """As mmcv's feed-forward networks have by default."""

    def in_place(model):
        for block in model.blocks:
            block.mlp.act = nn.ReLU(inplace=True)
        return gradients(model)

    of_both(product, in_place)


@both
def test_gradients_of_some_factors_alone(product):
    def of_some(model):
        loss, some = loss_of(model), low_rank(model, 'blocks.1.mlp.fc1')
        first = torch.autograd.grad(loss, some, retain_graph=True)
        return first, torch.autograd.grad(loss, some)

    first, second = of_both(product, of_some)
    torch.testing.assert_close(second, first)


@both
def test_factors_that_are_not_trained(product):
    def frozen_in_part(model):
        for name, parameter in model.named_parameters():
            if name.endswith('.down') or ('blocks.0' in name and name.endswith('.up')):
                parameter.requires_grad_(False)
        return gradients(model)

    assert any(name.endswith('.up') for name in of_both(product, frozen_in_part))


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

    def unfrozen_within(model):
        for parameter in low_rank(model):
            parameter.requires_grad_(False)
        model.blocks[0].register_forward_pre_hook(
            lambda *_: [p.requires_grad_() for p in low_rank(model)] and None
        )
        return gradients(model)

    assert all(value is not None for value in of_both(product, unfrozen_within).values())


@both
@pytest.mark.parametrize('reentrant', [False, True])
def test_optimizer_within_the_backward(product, reentrant):
    """With some blocks computed again: each factor is stepped once, when its gradient is there."""

    def stepped(model):
        by_blocks(model, reentrant)
        counts = []

        def step(parameter):
            counts.append(parameter)
            parameter.data.sub_(parameter.grad, alpha=0.1)
            parameter.grad = None

        for parameter in low_rank(model):
            parameter.register_post_accumulate_grad_hook(step)
        loss_of(model).backward()
        assert len(counts) == len(low_rank(model))
        return [p.detach() for p in low_rank(model)]

    of_both(product, stepped)


@both
def test_two_losses_with_a_step_between(product):
    """Each over one block; what the second needs was not written to."""

    def by_turns(model):
        x = torch.linspace(-1, 1, 2 * 5 * 8, dtype=torch.float64).view(2, 5, 8)
        both_losses = [block(x).square().sum() for block in model.blocks[:2]]
        model(images(2, torch.float64)[0])  # within a model's forward copies are shared
        both_losses[0].backward()
        with torch.no_grad():
            for parameter in low_rank(model, 'blocks.0.'):
                parameter.sub_(parameter.grad, alpha=0.1)
        both_losses[1].backward()
        return [p.grad for p in low_rank(model) if p.grad is not None]

    of_both(product, by_turns)


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


@both
def test_bias_adapter_that_a_hook_writes_to_after_the_copies_were_made(product):
    """An effective bias is computed where it is used."""

    def with_another_bias(model):
        found = [adapter for m in carriers(model) for adapter in m.cdra.of('bias')]
        assert found

        def write(*_):
            for adapter in found:
                with torch.no_grad():
                    adapter.value.add_(0.5)

        with model.blocks[0].register_forward_pre_hook(write):
            return model(images(2, torch.float64)[0]).detach()

    of_both(product, with_another_bias)
