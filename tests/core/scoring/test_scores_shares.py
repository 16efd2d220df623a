"""Scores of several processes, each with a share of the samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cdra_mm.core import ScoreError, estimate_scores
from cdra_mm.core.scoring.score_sums import ScoreSums

TARGETS = ['0.weight', '0.bias', '2.weight']


@pytest.fixture
def problem():
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    return model, torch.randn(7, 2, 5)


def losses(model, x):
    return F.mse_loss(model(x), x[..., :3], reduction='none').mean((1, 2))


def score(model, batches, statistic, combine=None):
    return estimate_scores(
        model, batches, losses, targets=TARGETS, statistic=statistic, combine=combine
    )


@pytest.mark.parametrize('statistic', ['per_sample', 'per_batch', 'summed'])
def test_shares_add_up_to_the_scores_of_all(problem, statistic):
    model, x = problem
    batches = list(x.split(2))  # the last has one sample
    shares = [batches[:1], batches[1:], []]
    brought = []

    def bring(sums, count):
        brought.append(([total.clone() for total in sums], count))
        return max(count, 1)

    for share in shares[:-1]:
        score(model, share, statistic, bring)

    def add_up(sums, count):
        assert count == 0 and len(sums) == 1  # one flat tensor: one all-reduce
        for parts, _ in brought:
            sums[0].add_(parts[0])
        return sum(count for _, count in brought)

    scores, expected = score(model, [], statistic, add_up), score(model, batches, statistic)
    for name in TARGETS:
        torch.testing.assert_close(scores[name], expected[name], rtol=1e-5, atol=1e-9)


def test_scores_lie_side_by_side_and_begin_at_multiples_of_256_bytes(problem):
    model, x = problem
    scores = score(model, [x], 'per_sample')
    assert {s.data_ptr() for s in scores.values()} == {
        scores['0.weight'].data_ptr() + begin for begin in (0, 256, 512)
    }
    assert scores['0.weight'].untyped_storage().nbytes() == 3 * 256


def test_sums_lie_where_their_parameters_do():
    """The meta device stands for any other than the CPU's."""
    parameters = {
        'a': nn.Parameter(torch.ones(3)),
        'b': nn.Parameter(torch.ones(2, device='meta')),
        'c': nn.Parameter(torch.ones(65)),
    }
    sums = ScoreSums(parameters)
    assert {name: sums[name].device.type for name in parameters} == dict(a='cpu', b='meta', c='cpu')
    assert [(total.device.type, len(total)) for total in sums.flat] == [('cpu', 192), ('meta', 64)]


def test_share_without_a_gradient_is_an_error_only_if_all_are(problem):
    model, x = problem
    dead = [x[:2] * 0]

    def loss_zero(model, x):
        return (model(x) * x[..., :3]).mean((1, 2)) * 0

    def score_dead(combine):
        return estimate_scores(model, dead, loss_zero, targets=TARGETS, combine=combine)

    with pytest.raises(ScoreError, match='exactly zero over 2 samples'):
        score_dead(lambda sums, count: count)

    def add_another(sums, count):
        sums[0].add_(1.0)
        return count + 1

    scores = score_dead(add_another)
    assert all(torch.equal(s, torch.full_like(s, 1 / 3)) for s in scores.values())
    with pytest.raises(ScoreError, match='no sample to score'):
        score(model, [], 'per_sample', lambda sums, count: count)
