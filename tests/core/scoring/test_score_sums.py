"""Scores kept in half the memory, or elsewhere, are those of fp32 but for a stated rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdra_mm.core import ScoreError, estimate_scores, make_plan, select
from cdra_mm.core.scoring import score_sums
from cdra_mm.core.scoring.score_sums import ScoreSums
from tests.core.scoring.test_scores import split
from tests.core.scoring.test_scores_other_uses import with_penalty
from tests.models import MODELS, TinyViT, losses

BF16 = torch.bfloat16


def summed(batches):
    """What bfloat16 sums hold after some batches' squares ``[n]``, and the exact sums."""
    sums = ScoreSums({'w': nn.Parameter(torch.zeros(batches[0].shape))}, BF16)
    for squares in batches:
        with sums.open('w') as total:
            total.add_(squares)
    return sums['w'].double(), sum(squares.double() for squares in batches)


def test_sums_in_bf16_do_not_stand_still():
    """Rounded to the nearest, each would end at 256 times what it gets in a batch."""
    each = torch.logspace(-20, 3, 200)
    kept, exact = summed([each] * 4000)
    assert float((kept / exact - 1).abs().max()) < 2**-6


def test_sums_in_bf16_lean_to_no_side():
    generator = torch.Generator().manual_seed(0)
    scale = torch.randn(5000, generator=generator).mul_(3).exp_().mul_(1e-9)
    kept, exact = summed(
        [scale * torch.randn(5000, generator=generator).square() for _ in range(200)]
    )
    error = kept / exact - 1
    assert abs(float(error.mean())) < 2e-3
    assert float(error.square().mean().sqrt()) < 0.02


def test_sums_in_bf16_keep_what_is_exact():
    kept, exact = summed([torch.tensor([0.0, 1.0, 2.0**-100, 3.0]) for _ in range(16)])
    assert torch.equal(kept, exact)


def test_sums_are_rounded_in_pieces_of_any_length(monkeypatch):
    batches = [torch.rand(13, 5) for _ in range(3)]
    whole = summed(batches)[0]
    monkeypatch.setattr(score_sums, 'CHUNK', 7)
    assert torch.equal(summed(batches)[0], whole)


def test_sums_in_bf16_select_what_exact_ones_do():
    """400 batches, as of single samples: of the selected hundredth 97 of 100 are the same."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.randn(20_000, generator=generator).exp_()
    kept, exact = summed(
        [scale * torch.randn(20_000, generator=generator).square() for _ in range(400)]
    )
    chosen = [select({'w': sums.float()}, gamma=0.01)['w'] for sums in (kept, exact)]
    assert int((chosen[0] & chosen[1]).sum()) >= 0.97 * int(chosen[1].sum())


@pytest.mark.parametrize('statistic', ['per_sample', 'per_batch'])
@pytest.mark.parametrize('kind', ['fused', 'mha_sequence'])
def test_scores_in_bf16_are_those_of_fp32(kind, statistic):
    torch.manual_seed(0)
    model, batches = MODELS[kind](), split([3] * 20, torch.float32)
    wide, narrow = (
        estimate_scores(model, batches, losses, statistic=statistic, dtype=dtype)
        for dtype in (torch.float32, BF16)
    )
    assert list(narrow) == list(wide)
    for name, score in narrow.items():
        assert score.dtype == BF16
        torch.testing.assert_close(score.float(), wide[name], rtol=0.05, atol=0)


def test_scores_one_by_one_are_kept_in_bf16_too():
    model, batches = TinyViT(), split([3] * 20, torch.float32)
    wide, narrow = (
        estimate_scores(model, batches, with_penalty, dtype=dtype, warn=lambda line: None)
        for dtype in (torch.float32, BF16)
    )
    name = 'blocks.0.mlp.fc1.weight'
    torch.testing.assert_close(narrow[name].float(), wide[name], rtol=0.05, atol=0)


def test_scores_a_part_at_a_time_are_those_of_one_pass():
    """What docs/large_backbones.md offers where the sums of all do not fit."""
    model, batches = TinyViT(), split([4] * 2, torch.float32)
    whole = estimate_scores(model, batches, losses)
    parts = {}
    for names in (list(whole)[::2], list(whole)[1::2]):
        parts |= estimate_scores(model, batches, losses, targets=names)
    for name, score in whole.items():
        torch.testing.assert_close(parts[name], score, rtol=1e-5, atol=1e-12)


def test_scores_in_bf16_are_the_same_each_time():
    model, batches = TinyViT(), split([4] * 5, torch.float32)
    one, other = (estimate_scores(model, batches, losses, dtype=BF16) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_sums_lie_where_they_are_asked_to_and_are_added_to_where_the_weight_lies():
    """The meta device stands for a GPU."""
    sums = ScoreSums({'w': nn.Parameter(torch.zeros(3, 2, device='meta'))}, device='cpu')
    assert [total.device.type for total in sums.flat] == ['cpu']
    assert sums.device == torch.device('meta')
    with pytest.raises(NotImplementedError, match='meta'):  # nothing can be copied from there
        with sums.open('w', slice(1, 3)) as squares:
            assert squares.device.type == 'meta' and squares.dtype == torch.float32
            assert squares.shape == (2, 2)


@pytest.mark.parametrize('dtype', score_sums.DTYPES)
def test_squares_from_elsewhere_are_added_to_the_sums(dtype):
    """What `open` does with its scratch when the weight lies on another device."""
    total = torch.arange(12).view(4, 3).to(dtype)
    score_sums._keep(total[1:3], torch.full((2, 3), 2.0), 0)
    assert total.tolist() == [[0, 1, 2], [5, 6, 7], [8, 9, 10], [9, 10, 11]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('dtype', score_sums.DTYPES)
def test_scores_of_a_gpu_kept_on_the_cpu(dtype):
    model = TinyViT().cuda()
    batches = [(x.cuda(), y.cuda()) for x, y in split([2] * 8, torch.float32)]
    wide = estimate_scores(model, batches, losses)
    kept = estimate_scores(model, batches, losses, dtype=dtype, device='cpu')
    for name, score in kept.items():
        assert score.device.type == 'cpu' and score.dtype == dtype
        torch.testing.assert_close(score.float(), wide[name].cpu(), rtol=0.05, atol=1e-12)


@pytest.mark.parametrize(('dtype', 'why'), [
    (torch.float16, 'below the smallest number'),
    (torch.float64, 'expected float32 or bfloat16$'),
])  # fmt: skip
def test_scores_refuse_a_type_before_any_batch(dtype, why):
    def never(model, batch):
        raise AssertionError

    with pytest.raises(ScoreError, match=f'scores in {str(dtype)[6:]}: .*{why}'):
        estimate_scores(TinyViT(), split([1]), never, dtype=dtype)


@pytest.mark.parametrize(
    'budget',
    [{'gamma': 0.1}, {'num_sensitive': 77}, {'budget_params': 250}],
    ids=lambda budget: next(iter(budget)),
)
def test_plan_of_bf16_scores_is_that_of_the_same_numbers_in_fp32(budget):
    scores = estimate_scores(TinyViT(), split([4] * 5, torch.float32), losses, dtype=BF16)
    wide = {name: score.float() for name, score in scores.items()}
    plan = make_plan(scores, rank_rule='count', **budget)
    assert plan == make_plan(wide, rank_rule='count', **budget) and plan.blocks
