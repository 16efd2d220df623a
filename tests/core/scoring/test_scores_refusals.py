"""Scoring stops with a clear error where its result would mean nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdra_mm.core import CDRAError, ScoreError, estimate_scores
from cdra_mm.core.scoring.mean_gradients import mean_gradients
from cdra_mm.core.scoring.scores import require_finite
from tests.core.scoring.test_scores import assert_same, snapshot, split
from tests.models import TinyViT, losses, mean_loss


@pytest.fixture
def model():
    return TinyViT().double()


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_weight_that_is_not_finite_is_named(model, value):
    weight = dict(model.named_parameters())['blocks.0.attn.proj.weight']
    weight.data[1, 2] = value
    with pytest.raises(ScoreError, match=r'^blocks\.0\.attn\.proj\.weight holds values'):
        require_finite(model)


def test_weights_whose_sum_is_too_large_are_finite(model):
    weight = dict(model.float().named_parameters())['blocks.0.attn.proj.weight']
    weight.data.fill_(3e38)
    assert weight.sum().isinf()
    require_finite(model)


def test_scores_refuse_no_batch(model):
    with pytest.raises(ScoreError, match='(?i)batch|sample'):
        estimate_scores(model, [], losses)


@pytest.mark.parametrize('score', [estimate_scores, mean_gradients])
def test_scores_refuse_what_has_no_gradients(model, score):
    with torch.inference_mode(), pytest.raises(ScoreError, match='inference_mode.* is on'):
        score(model, split([2]), losses)
    with pytest.raises(ScoreError, match='is on meta, without values'):
        score(model.to('meta'), split([2]), losses)


def test_scores_refuse_an_unknown_statistic(model):
    with pytest.raises(CDRAError, match='(?s)statistic.*per_pixel.*per_sample'):
        estimate_scores(model, split([2]), losses, statistic='per_pixel')


def test_scores_refuse_an_unknown_target(model):
    with pytest.raises(CDRAError, match='blocks.9.attn.proj.weight'):
        estimate_scores(model, split([2]), losses, targets=['blocks.9.attn.proj.weight'])


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_scores_name_the_sample_with_a_loss_that_is_not_finite(model, value):
    before = snapshot(model)

    def poisoned(model, batch):
        loss = losses(model, batch)
        return torch.where(torch.tensor([False, True, False, False]), loss * value, loss)

    def second_batch(model, batch):
        seen.append(1)
        return poisoned(model, batch) if len(seen) == 2 else losses(model, batch)

    seen = []
    with pytest.raises(ScoreError, match=r'(?i)\b5\b'):
        estimate_scores(model, split([4, 4]), second_batch)
    assert_same(before, snapshot(model))


def test_scores_name_the_first_of_the_samples_with_a_loss_that_is_not_finite(model):
    factors = torch.tensor([1.0, float('inf'), float('nan'), 1.0])
    with pytest.raises(ScoreError, match='^the loss of sample 1 is inf: expected'):
        estimate_scores(model, split([4]), lambda m, b: losses(m, b) * factors)


def test_scores_refuse_a_mean_loss_that_is_not_finite(model):
    with pytest.raises(ScoreError, match=r'^the loss of sample 0 is nan \(batch of 4\): expected'):
        estimate_scores(model, split([4]), lambda m, b: (losses(m, b).mean() * float('nan'), 4))


def test_scores_name_the_weight_that_is_not_finite(model):
    """Then no sample is at fault."""
    model.blocks[1].mlp.fc1.weight.data[2, 3] = float('nan')
    with pytest.raises(ScoreError, match=r'^blocks\.1\.mlp\.fc1\.weight holds values') as error:
        estimate_scores(model, split([4]), losses)
    assert error.value.sample is None


def test_scores_name_the_sample_with_a_gradient_that_is_not_finite(model):
    def rooted(model, batch):
        logits = model(batch[0]).sum(-1)
        return (logits * torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=logits.dtype)).abs().sqrt()

    with pytest.raises(ScoreError, match=r'(?is)gradient.*\b2\b|\b2\b.*gradient'):
        estimate_scores(model, split([4]), rooted)


def test_scores_name_the_first_sample_with_a_gradient_that_is_not_finite_of_all_batches(model):
    batches = split([3, 4])

    def rooted(model, batch):
        kept = torch.tensor([1.0, 0.0, 0.0, 1.0] if batch is batches[1] else [1.0] * 3)
        return (model(batch[0]).sum(-1) * kept).abs().sqrt()

    with pytest.raises(ScoreError, match='^the gradient of sample 4 is not finite') as error:
        estimate_scores(model, batches, rooted)
    assert error.value.sample == 4


class Scaled(nn.Module):
    """``LayerNorm``, a layer scale and a linear layer: each kind of weight that is scored."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 3)
        self.gamma = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.fc(self.norm(x) * self.gamma)


@pytest.mark.parametrize('target', ['norm.weight', 'norm.bias', 'gamma', 'fc.weight', 'fc.bias'])
def test_scores_name_the_sample_whichever_weight_is_scored_alone(target):
    def rooted(model, x):
        kept = torch.tensor([1.0, 1.0, 0.0, 1.0])
        return (model(x).sum((1, 2)) * kept).abs().sqrt()

    with pytest.raises(ScoreError, match=r'(?is)gradient.*\b2\b'):
        estimate_scores(Scaled(), [torch.randn(4, 5, 4)], rooted, targets=[target])


def test_scores_refuse_zero_gradients_everywhere(model):
    nn.init.zeros_(model.head.weight)
    for statistic, count in {'per_sample': '7 samples', 'per_batch': '2 batches'}.items():
        with pytest.raises(ScoreError, match=f'exactly zero over {count}: '):
            estimate_scores(model, split([4, 3]), losses, statistic=statistic)


def test_scores_refuse_a_loss_without_a_graph(model):
    def detached(model, batch):
        with torch.no_grad():
            return losses(model, batch)

    with pytest.raises(ScoreError, match='(?i)grad|depend'):
        estimate_scores(model, split([4]), detached)


@pytest.mark.parametrize(
    'returned',
    [
        lambda loss: loss.mean(),
        lambda loss: loss[:, None].expand(-1, 2),
        lambda loss: {'loss': loss},
        lambda loss: 1.0,
        lambda loss: loss[:0],
        lambda loss: (loss.mean(), 0),
        lambda loss: (loss.mean(), 4.0),
        lambda loss: (loss.mean(), 4, 4),
        lambda loss: (loss, 4),
        lambda loss: (1.0, 4),
    ],
    ids=[
        'scalar',
        'matrix',
        'dict',
        'float',
        'empty',
        'no samples',
        'no count',
        'three',
        'losses and a count',
        'a number and a count',
    ],
)
def test_scores_refuse_what_is_no_loss(model, returned):
    with pytest.raises(ScoreError, match='(?i)loss'):
        estimate_scores(model, split([4]), lambda m, b: returned(losses(m, b)))


def test_scores_refuse_a_weight_used_twice_under_a_mean_loss(model):
    model.blocks[1].mlp.fc1 = model.blocks[0].mlp.fc1
    with pytest.raises(ScoreError, match=r'2 of 26 .* blocks\.0\.mlp\.fc1\.weight.*used twice'):
        estimate_scores(model, split([3]), mean_loss)
    estimate_scores(model, split([1]), mean_loss, warn=str)  # one sample has one gradient
