"""Where the samples of a batch lie in an activation is found out, never taken for granted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdra_mm.core import ScoreError, estimate_scores, find_targets
from tests.core.scoring.test_scores import assert_scores, split
from tests.models import MODELS, Mlp, TinyViT, losses, mean_loss
from tests.reference.scores import mean_squares, one_by_one


def two_dates(model, batch):
    """Change detection: both dates of a sample run through the model as one batch of 2B."""
    x, y = batch
    first, second = model(torch.cat([x, x.flip(-1)])).chunk(2)
    return (first - second).square().sum(1) + losses(model_output(first), (None, y))


def model_output(y):
    return lambda _: y


def side_by_side(model, batch):
    """The same with the dates of a sample beside each other, as windows are."""
    x, y = batch
    first, second = (
        model(torch.stack([x, x.flip(-1)], 1).flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
    )
    return (first - second).square().sum(1) + losses(model_output(first), (None, y))


def tokens_first(self, x):
    return Mlp.forward(self, x.transpose(0, 1)).transpose(0, 1)


def with_table(self, x):
    """A layer on a table of no sample, whose length fits the batch."""
    return Mlp.forward(self, x) + self.spare(self.table).mean((0, 1))


def rewrite(module, forward):
    module.forward = forward.__get__(module)


@pytest.fixture
def model():
    return TinyViT().double()


def scored(model, batches, loss_fn=losses):
    """Scores that were compared with the oracle, and the warnings."""
    told = []
    expected = mean_squares(model, one_by_one(batches), loss_fn, find_targets(model))
    assert_scores(estimate_scores(model, batches, loss_fn, warn=told.append), expected)
    return told


def test_places_of_two_dates_stacked_as_one_batch(model):
    (line,) = scored(model, split([4, 3]), two_dates)
    assert '28 of 28 parameters' in line
    assert 'activations [8, ...] of a batch of 4, where samples do not lie one by one' in line


def test_places_of_two_dates_stacked_after_a_batch_of_one(model):
    """Of one sample everything is its own; the next batch is asked again."""
    (line,) = scored(model, split([1, 4]), two_dates)
    assert '28 of 28 parameters' in line


def test_places_of_two_dates_side_by_side_are_as_windows(model):
    assert scored(model, split([4, 3]), side_by_side) == []


@pytest.mark.parametrize('sizes', [[5], [4], [5, 4]], ids=str)
def test_places_of_tokens_first(model, sizes):
    """Five tokens: with five samples every shape fits."""
    rewrite(model.blocks[1].mlp, tokens_first)
    (line,) = scored(model, split(sizes))
    assert '4 of 28 parameters' in line and 'blocks.1.mlp.fc2.weight' in line


def test_places_of_a_table_without_samples(model):
    mlp = model.blocks[0].mlp
    mlp.spare = nn.Linear(8, 8).double()
    mlp.register_buffer('table', torch.randn(4, 3, 8, dtype=torch.float64))
    rewrite(mlp, with_table)
    (line,) = scored(model, split([4, 4]))
    assert '2 of 30 parameters' in line and 'spare.weight' in line


def test_places_where_a_sample_depends_on_one_before_it(model):
    """Each loss must be differentiated alone then; of the first sample nothing would show."""

    def chained(model, batch):
        x, y = batch
        logits = model(x)
        return losses(model_output(logits + logits.roll(1, 0).tril(-1)[:, :3]), (None, y))

    batches = split([4])
    parameter = model.blocks[0].mlp.fc1.weight
    loss = chained(model.eval(), batches[0])
    grads = [torch.autograd.grad(loss[n], parameter, retain_graph=True)[0] for n in range(4)]
    scores = estimate_scores(model, batches, chained, warn=str)
    expected = sum(grad.square() for grad in grads) / 4
    assert_scores({'w': scores['blocks.0.mlp.fc1.weight']}, {'w': expected})


def muted(mute, loss_fn):
    """The loss of some samples is constant, by their position in the batch."""

    def loss(model, batch):
        kept = torch.tensor([n not in mute for n in range(len(batch[1]))])
        return loss_fn(model, batch) * kept

    return loss


@pytest.mark.parametrize('loss_fn', [losses, two_dates])
@pytest.mark.parametrize('mute', [(2,), (0, 1, 2)], ids=str)
def test_places_where_the_sample_that_is_asked_has_no_gradient(model, loss_fn, mute):
    """Its zeros prove nothing: others are asked before squares are added."""
    batches = split([4, 4])
    loss = muted(mute, loss_fn)
    parameters = dict(model.eval().named_parameters())
    names = ['blocks.0.mlp.fc1.weight', 'blocks.1.norm1.bias', 'head.weight']
    expected = {name: 0 for name in names}
    for batch in batches:
        values = loss(model, batch)
        for n in range(4):
            for name in names:
                grad = torch.autograd.grad(values[n], parameters[name], retain_graph=True)[0]
                expected[name] = expected[name] + grad.square() / 8
    assert_scores(estimate_scores(model, batches, loss, targets=names, warn=str), expected)


def test_places_of_a_layer_that_wakes_in_a_later_batch(model):
    """It had no gradient when the first batch was asked."""
    rewrite(model.blocks[1].mlp, tokens_first)
    batches = split([4, 5])

    def loss_fn(model, batch):
        gamma = model.blocks[1].ls2
        gamma.forward = lambda x: x * (gamma.gamma.detach() * (len(batch[1]) == 5))
        return losses(model, batch)

    parameter = model.blocks[1].mlp.fc1.weight
    loss = loss_fn(model.eval(), batches[1])
    expected = sum(
        torch.autograd.grad(loss[n], parameter, retain_graph=True)[0].square() for n in range(5)
    )
    told = []
    scores = estimate_scores(model, batches, loss_fn, warn=told.append)
    assert len(told) == 1 and 'blocks.1.mlp.fc1.weight' in told[0]
    assert_scores({'w': scores['blocks.1.mlp.fc1.weight']}, {'w': expected / 9})
    assert scores['blocks.0.mlp.fc1.weight'].any()


def test_places_cannot_be_told_from_a_mean_loss():
    """Windows, and as many tokens as samples: refused by name."""
    model = MODELS['windowed']().double()
    with pytest.raises(
        ScoreError, match=r'blocks.*activations \[\d+, ...\] of a batch of 4: a mean'
    ):
        estimate_scores(model, split([4]), mean_loss)
    model = TinyViT().double()
    with pytest.raises(ScoreError, match=r'activations \[5, ...\] of a batch of 5: a mean loss'):
        estimate_scores(model, split([5]), mean_loss)


@pytest.mark.parametrize('kind', MODELS)
def test_places_do_not_matter_per_batch(kind):
    model = MODELS[kind]().double()
    batches = split([4, 3])
    for loss_fn in (losses, two_dates):
        expected = mean_squares(model, batches, loss_fn, find_targets(model))
        assert_scores(
            estimate_scores(model, batches, loss_fn, statistic='per_batch', warn=str), expected
        )


@pytest.mark.parametrize('loss_fn', [losses, mean_loss])
@pytest.mark.parametrize('statistic', ['per_sample', 'per_batch'])
def test_places_cost_one_backward_of_a_run(model, monkeypatch, loss_fn, statistic):
    calls = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, 'grad', lambda *a, **k: calls.append(1) or real(*a, **k))
    forwards = []
    hook = model.head.register_forward_hook(lambda *_: forwards.append(1))
    estimate_scores(model, split([4, 4, 3]), loss_fn, statistic=statistic)
    hook.remove()
    assert len(forwards) == 3 and len(calls) == 4
