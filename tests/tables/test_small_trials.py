"""Plans that are tried out in memory: a supernet on some images, measured on the others."""

from __future__ import annotations

import copy

import pytest
import torch

from cdra_mm.benchmark.small_tasks import IGNORED, Task
from cdra_mm.benchmark.small_training import SmallModel, small_loss
from cdra_mm.core import DataError, ScoreError, adapters, find_targets
from cdra_mm.methods import make_method
from cdra_mm.methods.base import Request
from cdra_mm.tables.small_trials import SmallTrials
from tests.benchmark.test_rounding import tiny_vit

SIZES = dict(held_out=0.25, max_held_out=100, epochs=1, iters=6, lr_mult=1.0)


def made(dense=False):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (20, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(20) % 3
    images[labels == 1, 0] //= 4
    if dense:
        labels = labels.view(-1, 1, 1).expand(-1, 32, 32).clone()
        labels[:, :16] = IGNORED
    task = Task((images, labels), (images[:2], labels[:2]), 3, None)
    torch.manual_seed(0)
    model = SmallModel(tiny_vit(32), 3, dense)
    return model, SmallTrials(model, task, seed=0, batch=4, head_rate=1e-2)


def plan_of(model, rank):
    return make_method(dict(type='lora', rank=rank)).plan(Request(model.backbone))


def held_out(trials):
    images, labels = zip(*trials._held_out, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize('dense', [False, True])
def test_a_plan_is_worth_what_its_part_of_the_supernet_makes_of_the_held_out_images(dense):
    """Against whole images one by one, with the first rows of the supernet written by hand."""
    model, trials = made(dense)
    small = plan_of(model, 1)
    trials.train(plan_of(model, 2), lambda: plan_of(model, 2), **SIZES)
    expected = copy.deepcopy(model)
    expected.head.load_state_dict(trials._model.head.state_dict())
    targets = find_targets(expected.backbone)
    weights = dict(expected.backbone.named_parameters())
    scales = {block.name: block.scale for block in small.blocks}
    with torch.no_grad():
        for name, parts in trials._shared.shared.items():
            block = next(b for b in small.blocks if b.name == name)
            rows = torch.tensor(block.rows) + targets[name].start
            weights[name.partition(':')[0]][rows] += (
                scales[name] * parts['up'][:, :1] @ parts['down'][:1]
            )
    images, labels = held_out(trials)
    assert len(images) == 5
    expected.eval()
    worth = []
    with torch.no_grad():
        for image, label in zip(images, labels, strict=True):
            logits = expected(image[None])
            right = float(logits.argmax(1) == label) if not dense else 0.0
            worth.append(-float(small_loss(logits, label[None])) if dense else right)
    assert trials.fitness(small) == pytest.approx(sum(worth) / 5, abs=1e-5)
    assert not trials._model.training
    if dense:  # the other plan is another model
        assert trials.fitness(plan_of(model, 2)) != pytest.approx(trials.fitness(small), abs=1e-6)


def test_the_supernet_is_trained_on_the_other_images_alone_and_on_a_copy():
    model, trials = made()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trials.train(plan_of(model, 2), lambda: plan_of(model, 1), **SIZES)
    assert not adapters(model.backbone)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(trials._model.head.weight, model.head.weight)
    # What the drawn plans have has moved, the rest has not: `up` begins at zero.
    for parts in trials._shared.shared.values():
        assert parts['up'][:, 0].any() and not parts['up'][:, 1].any()
    # Held-out images with other contents train the same supernet.
    again = made()[1]
    images, labels = again._task.train
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    images[order[:5]] = 255 - images[order[:5]]
    again.train(plan_of(model, 2), lambda: plan_of(model, 1), **SIZES)
    assert torch.equal(again._model.head.weight, trials._model.head.weight)
    assert not torch.equal(held_out(again)[0], held_out(trials)[0])


@pytest.mark.parametrize(
    ('sizes', 'words'),
    [
        (dict(held_out=0.01), 'held_out=0.01 of 20 images is none'),
        (dict(held_out=0.9), '2 training images: expected at least a batch of 4'),
    ],
)
def test_too_few_images_are_refused(sizes, words):
    model, trials = made()
    with pytest.raises(DataError, match=words):
        trials.train(plan_of(model, 1), lambda: plan_of(model, 1), **{**SIZES, **sizes})


def test_a_supernet_that_diverges_is_refused():
    model, trials = made()
    with pytest.raises(ScoreError, match='the loss of the supernet is nan: lower supernet_lr_mult'):
        trials.train(plan_of(model, 2), lambda: plan_of(model, 2), **{**SIZES, 'lr_mult': 1e30})
