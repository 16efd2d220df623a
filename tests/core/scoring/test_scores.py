"""Eq. 3: batched scores equal the loop over single samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdra_mm.core import ScoreError, estimate_scores, find_targets
from cdra_mm.core.scoring.parameter_watch import ParameterWatch
from cdra_mm.core.scoring.scores import STATISTICS
from tests.models import MODELS, TinyViT, images, losses, mean_loss
from tests.reference.scores import magnitude_of_mean, mean_squares, one_by_one, view

SPLITS = {'singles': [1, 1, 1], 'ragged': [4, 4, 3], 'one': [6]}


def split(sizes, dtype=torch.float64):
    """Random batches of the given sizes."""
    x, y = images(sum(sizes), dtype)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def assert_scores(actual, expected, rtol=1e-5):
    """Same names in the same order, fp32, and close relative to each tensor's largest entry."""
    assert list(actual) == list(expected)
    for name, score in actual.items():
        assert score.dtype == torch.float32, name
        assert score.shape == expected[name].shape, name
        atol = rtol * float(expected[name].abs().max())
        torch.testing.assert_close(
            score.double(), expected[name], rtol=10 * rtol, atol=atol, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize('sizes', SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize('kind', MODELS)
def test_scores_equal_the_loop_over_single_samples(kind, sizes):
    model = MODELS[kind]().double().train()
    batches = split(sizes)
    expected = mean_squares(model, one_by_one(batches), losses, find_targets(model))
    assert_scores(estimate_scores(model, batches, losses), expected)
    if kind != 'windowed' or max(sizes) == 1:  # see test_scores_places.py
        assert_scores(estimate_scores(model, batches, mean_loss), expected)


@pytest.mark.parametrize('kind', MODELS)
def test_scores_per_batch_square_the_gradient_of_the_mean(kind):
    model = MODELS[kind]().double().train()
    batches = split([4, 4, 3])
    expected = mean_squares(model, batches, losses, find_targets(model))
    for loss_fn in (losses, mean_loss):
        assert_scores(estimate_scores(model, batches, loss_fn, statistic='per_batch'), expected)


@pytest.mark.parametrize('kind', MODELS)
def test_scores_summed_are_the_magnitude_of_the_mean_gradient(kind):
    model = MODELS[kind]().double().train()
    batches = split([4, 4, 3])
    expected = magnitude_of_mean(model, batches, losses, find_targets(model))
    for loss_fn in (losses, mean_loss):
        assert_scores(estimate_scores(model, batches, loss_fn, statistic='summed'), expected)


@pytest.mark.parametrize('kind', MODELS)
def test_every_target_with_a_gradient_has_a_score(kind):
    """Entry by entry; and what has a gradient inside a block is a target."""
    model = MODELS[kind]().double().eval()
    batches = split([3])
    scores = estimate_scores(model, batches, losses)
    losses(model, batches[0]).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for name, score in scores.items():
        moved = view(gradients[name.partition(':')[0]], name).abs() > 1e-12
        assert moved.any() and score[moved].all(), name
    scored = {name.partition(':')[0] for name in scores}
    beside = {name for name in gradients.keys() - scored if name.startswith('blocks.')}
    assert all(name.endswith('relative_position_bias_table') for name in beside), beside


@pytest.mark.parametrize('sizes', [[1, 1, 3, 1, 1], [3, 1, 1], [1, 2, 1, 2]], ids=str)
def test_scores_of_batches_of_one_and_several_samples(sizes):
    """A batch of several after one of a single sample is seen before anything is added."""
    model = MODELS['fused']().double()
    batches = split(sizes)
    expected = mean_squares(model, one_by_one(batches), losses, find_targets(model))
    for loss_fn in (losses, mean_loss):
        assert_scores(estimate_scores(model, batches, loss_fn), expected)


def test_scores_of_single_samples_are_ordinary_passes_after_the_first(monkeypatch):
    """No watch, one call of the loss a batch; and no ``.grad`` is touched."""
    model = MODELS['fused']()
    held = model.get_parameter('blocks.0.mlp.fc1.weight')
    held.grad = torch.ones_like(held)
    watched, called, enter = [], [], ParameterWatch.__enter__
    monkeypatch.setattr(
        ParameterWatch, '__enter__', lambda watch: watched.append(1) or enter(watch)
    )

    def counted(m, b):
        called.append(1)
        return losses(m, b)

    estimate_scores(model, split([1] * 5, torch.float32), counted)
    assert (len(watched), len(called)) == (1, 5)
    assert torch.equal(held.grad, torch.ones_like(held))
    assert all(p.grad is None for p in model.parameters() if p is not held)


@pytest.mark.parametrize('kept', [{}, {'dtype': torch.bfloat16}], ids=str)
def test_scores_of_a_single_sample_with_an_infinite_gradient_are_refused(kept):
    model = MODELS['fused']()
    seen = []

    def steep_third(m, b):  # a finite loss with an infinite gradient
        found = losses(m, b)
        seen.append(1)
        return (found - found.detach()).abs().sqrt() + 1 if len(seen) == 3 else found

    with pytest.raises(ScoreError, match='the gradient of sample 2 is not finite') as error:
        estimate_scores(model, split([1] * 4, torch.float32), steep_third, **kept)
    assert error.value.sample == 2


def test_scores_statistics_differ():
    """Or the tests above could not tell one from the other."""
    model = TinyViT().double()
    batches = split([4, 4])
    names = 'per_sample', 'per_batch', 'summed'
    scores = [estimate_scores(model, batches, losses, statistic=s) for s in names]
    one, other, third = (score['blocks.0.mlp.fc1.weight'] for score in scores)
    assert float(one.sum()) > 1.5 * float(other.sum())
    assert float(other.sum()) > 1.2 * float((third**2).sum())


@pytest.mark.parametrize('kind', MODELS)
def test_scores_in_fp32_stay_close(kind):
    model = MODELS[kind]()
    batches = split([4, 3], torch.float32)
    expected = mean_squares(
        model.double(),
        [(x.double(), y) for x, y in one_by_one(batches)],
        losses,
        find_targets(model),
    )
    assert_scores(estimate_scores(model.float(), batches, losses), expected, rtol=1e-4)


def test_scores_where_tokens_and_samples_are_as_many():
    """Five samples of five tokens: a scorer that mixes the two axes up cannot tell by size."""
    model = MODELS['mha_sequence']().double()
    batches = split([5])
    expected = mean_squares(model, one_by_one(batches), losses, find_targets(model))
    assert_scores(estimate_scores(model, batches, losses), expected)


def test_scores_of_two_halves_sum_to_the_whole():
    model = TinyViT().double()
    batches = split([4, 4, 3, 5])
    whole = estimate_scores(model, batches, losses)
    first = estimate_scores(model, batches[:2], losses)
    second = estimate_scores(model, batches[2:], losses)
    joined = {name: (first[name] * 8 + second[name] * 8).double() / 16 for name in whole}
    assert_scores(whole, joined)


def test_scores_do_not_depend_on_the_batch_size():
    model = TinyViT().double()
    one = estimate_scores(model, split([12]), losses)
    assert_scores(
        estimate_scores(model, split([5, 4, 3]), losses),
        {name: score.double() for name, score in one.items()},
    )


def test_scores_of_chosen_targets_in_the_given_order():
    model = TinyViT().double()
    batches = split([4])
    names = ['head.weight', 'blocks.1.attn.qkv.weight:v', 'blocks.0.norm1.bias', 'norm.weight']
    expected = mean_squares(model, one_by_one(batches), losses, names)
    assert_scores(estimate_scores(model, batches, losses, targets=iter(names)), expected)


def test_scores_of_frozen_weights():
    """The usual state of a backbone: nothing of it requires a gradient."""
    model = TinyViT().double()
    batches = split([4])
    expected = mean_squares(model, one_by_one(batches), losses, find_targets(model))
    model.requires_grad_(False)
    assert_scores(estimate_scores(model, batches, losses), expected)
    assert not any(p.requires_grad for p in model.parameters())


def test_scores_of_a_weight_the_loss_does_not_reach_are_zero():
    model = TinyViT().double()
    model.blocks[1].ls2.gamma.data.zero_()
    scores = estimate_scores(model, split([3]), losses)
    assert not scores['blocks.1.mlp.fc1.weight'].any()
    assert scores['blocks.0.mlp.fc1.weight'].any()


def test_scores_of_an_unused_weight_are_zero():
    model = TinyViT().double()
    model.blocks[1].attn.spare = nn.Linear(8, 8).double()
    scores = estimate_scores(
        model, split([3]), losses, targets=['blocks.1.attn.spare.weight', 'head.weight']
    )
    assert not scores['blocks.1.attn.spare.weight'].any()
    assert scores['head.weight'].any()


def test_scores_read_batches_once_and_report_progress():
    seen = []
    batches = split([4, 4, 3])
    estimate_scores(TinyViT().double(), iter(batches), losses, progress=seen.append)
    assert seen == [4, 8, 11]


def snapshot(model):
    """Everything a caller could see of a model."""
    return {
        'state': {key: value.clone() for key, value in model.state_dict().items()},
        'requires_grad': {name: p.requires_grad for name, p in model.named_parameters()},
        'grad': {
            name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
        },
        'identity': {name: id(p) for name, p in model.named_parameters()},
        'mode': {name: module.training for name, module in model.named_modules()},
        'class': {name: type(module) for name, module in model.named_modules()},
        'hooks': {
            name: [len(v) for k, v in vars(module).items() if k.endswith('_hooks')]
            for name, module in model.named_modules()
        },
        'keys': {name: sorted(vars(module)) for name, module in model.named_modules()},
        'random': {'': torch.get_rng_state()},
    }


def assert_same(before, after):
    """Equal snapshots, tensors bit for bit."""
    for what, values in before.items():
        assert list(values) == list(after[what]), what
        for key, value in values.items():
            other = after[what][key]
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other), (what, key)
            else:
                assert value == other, (what, key)


def unusual(batch_norm=True):
    """A model in a mixed state: modes, frozen weights, and gradients from earlier."""
    model = TinyViT(batch_norm=batch_norm).double().train()
    model.blocks[0].eval()
    model.blocks[1].mlp.requires_grad_(False)
    model.head.weight.grad = torch.full_like(model.head.weight, 3.0)
    return model


@pytest.mark.parametrize('statistic', STATISTICS)
def test_scores_leave_the_model_as_found(statistic):
    model = unusual()
    before = snapshot(model)
    estimate_scores(model, split([4, 3]), losses, statistic=statistic)
    assert_same(before, snapshot(model))


def test_scores_leave_the_model_as_found_after_an_error():
    model = unusual()
    before = snapshot(model)

    def failing(model, batch):
        losses(model, batch)
        raise KeyError('the data set is broken')

    with pytest.raises(KeyError, match='the data set is broken'):
        estimate_scores(model, split([4]), failing)
    assert_same(before, snapshot(model))


def test_scores_evaluate_in_eval_mode_and_batch_norm_does_not_mix_samples():
    model = unusual()
    batches = split([4, 3])
    expected = mean_squares(model, one_by_one(batches), losses, find_targets(model))
    assert_scores(estimate_scores(model, batches, losses), expected)


def test_scores_do_not_touch_training_afterwards():
    """A training step after scoring gives the same gradients as one without it."""
    batch = images(4)
    gradients = []
    for scored in (False, True):
        torch.manual_seed(3)
        model = TinyViT().train()
        if scored:
            estimate_scores(model, [batch], losses)
        torch.manual_seed(4)
        losses(model, batch).mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
