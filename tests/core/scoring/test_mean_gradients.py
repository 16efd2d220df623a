"""Mean gradients equal the mean over single samples."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from cdra_mm.core import ScoreError, find_targets
from cdra_mm.core.model.targets import view_of
from cdra_mm.core.scoring.mean_gradients import mean_gradients
from tests.models import MODELS, images, losses, mean_loss
from tests.reference.by_gradient import mean_gradient


def batches(sizes):
    x, y = images(sum(sizes), torch.float64)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def singles(given):
    return [(x[n : n + 1], y[n : n + 1]) for x, y in given for n in range(len(x))]


# fp32 gradients are added up by autograd itself, those of another type by a hook.
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('loss', [losses, mean_loss])
@pytest.mark.parametrize('kind', MODELS)
def test_they_equal_the_mean_over_single_samples(kind, loss, dtype):
    model = MODELS[kind]().double().train()
    given = batches([4, 4, 3])
    expected = mean_gradient(model, singles(given), losses, find_targets(model), view_of)
    model.to(dtype).train()
    given = [(x.to(dtype), y) for x, y in given]
    found = mean_gradients(model, given, loss)
    assert list(found) == list(expected) and model.training
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32 and gradient.shape == expected[name].shape
        atol = 1e-5 * float(expected[name].abs().max())
        torch.testing.assert_close(gradient.double(), expected[name], rtol=1e-4, atol=atol)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_gradients_and_flags_are_as_they_were(dtype):
    model = MODELS['fused']().to(dtype)
    held = model.get_parameter('blocks.0.mlp.fc1.weight')
    held.grad = torch.ones_like(held)
    flags = [p.requires_grad_(n % 2 == 0).requires_grad for n, p in enumerate(model.parameters())]
    ((x, y),) = batches([3])
    mean_gradients(model, [(x.to(dtype), y)], losses)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(held.grad, torch.ones_like(held))
    assert all(p.grad is None for p in model.parameters() if p is not held)


def test_processes_add_up_their_shares():
    model = MODELS['fused']().double()
    given = batches([2, 3])
    whole = mean_gradients(model, given, losses)
    kept = []

    def keep(sums, count):
        kept.append([total.clone() for total in sums])
        return count

    mean_gradients(model, given[:1], losses, combine=keep)

    def join(sums, count):
        for total, other in zip(sums, kept[0], strict=True):
            total += other
        return count + 2

    joined = mean_gradients(model, given[1:], losses, combine=join)
    for name, gradient in joined.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-5, atol=1e-9)


def test_bfloat16_keeps_small_gradients_of_both_signs():
    """A sum in bf16 that stood still would lose all but the first samples."""
    model = MODELS['fused']().double()
    given = batches([1] * 60)
    exact, rounded = (
        mean_gradients(model, given, losses, dtype=d) for d in (torch.float32, torch.bfloat16)
    )
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.bfloat16
        error = (gradient.float() - exact[name]).norm() / exact[name].norm()
        assert error < 0.05, name


def test_a_gradient_that_autograd_cannot_add_in_place_is_in_the_sum_too():
    """For some kinds autograd gives ``.grad`` a new tensor and leaves the old one."""
    model = MODELS['fused']()
    ((x, y),) = batches([3])
    given = [(x.float(), y)] * 2
    plain = mean_gradients(model, given, losses)
    weight = model.get_parameter('blocks.0.mlp.fc1.weight')

    def renew(parameter):
        new = parameter.grad.clone()
        parameter.grad.zero_()
        parameter.grad = new

    handle = weight.register_post_accumulate_grad_hook(renew)
    torch.testing.assert_close(mean_gradients(model, given, losses), plain)
    handle.remove()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_what_cannot_be_a_gradient_is_said(dtype):
    model = MODELS['fused']().to(dtype)
    ((x, y),) = batches([3])
    x = x.to(dtype)
    with pytest.raises(ScoreError, match='no sample to score'):
        mean_gradients(model, [], losses)
    with pytest.raises(ScoreError, match='are exactly zero over 3 samples'):
        mean_gradients(model, [(x, y)], lambda m, b: losses(m, b).detach())
    with pytest.raises(ScoreError, match='the loss of sample 1 is nan'):
        mean_gradients(model, [(x, y)], lambda m, b: losses(m, b) * torch.tensor([1, torch.nan, 1]))

    def steep(m, b):  # a finite loss with an infinite gradient
        return (losses(m, b) - losses(m, b).detach()).abs().sqrt() + 1

    with pytest.raises(ScoreError, match='the gradient of one of the samples 0 to 2 is not finite'):
        mean_gradients(model, [(x, y)], steep)


@pytest.mark.parametrize('reentrant', [True, False])
def test_recomputed_weights_have_their_gradient_or_are_refused(reentrant):
    """A pass to named inputs never enters a reentrant checkpoint: zeros would look real."""
    layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2)).requires_grad_(False)

    def loss(model, x):
        hidden = model[0](x)
        return checkpoint(model[1], hidden, use_reentrant=reentrant).square().sum(1)

    names = ['0.weight', '1.weight']
    if reentrant:
        with pytest.raises(ScoreError, match='give use_reentrant=False'):
            mean_gradients(layers, [torch.ones(3, 4)], loss, targets=names)
        assert not any(p.requires_grad for p in layers.parameters())
    else:
        given = [torch.randn(3, 4, generator=torch.Generator().manual_seed(0))]
        found = mean_gradients(layers, given, loss, targets=names)
        plain = mean_gradients(
            layers, given, lambda model, x: model[1](model[0](x)).square().sum(1), targets=names
        )
        assert all(plain[name].any() for name in names)
        torch.testing.assert_close(found, plain)


def test_no_target_has_no_gradient():
    model = MODELS['fused']().double()
    with pytest.raises(ScoreError, match='all 0 targets are exactly zero'):
        mean_gradients(model, batches([2]), losses, targets=[])


def test_a_convolution_has_the_gradient_of_its_kernel():
    convolution = torch.nn.Conv2d(3, 4, 2, stride=2)
    model = torch.nn.Sequential(convolution, torch.nn.Flatten(), torch.nn.Linear(16, 5))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, 4, 4, generator=generator), torch.arange(5)

    def loss(model, given):
        return torch.nn.functional.cross_entropy(model(given[0]), given[1], reduction='none')

    found = mean_gradients(model, [(x[:2], y[:2]), (x[2:], y[2:])], loss, targets=['0.weight'])
    (expected,) = torch.autograd.grad(loss(model, (x, y)).mean(), [convolution.weight])
    torch.testing.assert_close(found['0.weight'].reshape(4, 3, 2, 2), expected)
