"""Short trainings by any method: their head, their plan, their metrics, and nothing left behind."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cdra_mm.benchmark.small_tasks import Task
from cdra_mm.benchmark.small_training import SmallModel, sample_losses, small_loss
from cdra_mm.core import Plan
from cdra_mm.core.planning.energy import EnergyRules
from cdra_mm.tables.small_runs import Recipe, Setting
from tests.benchmark.test_rounding import tiny_vit

ENERGY = dict(type='cdra', budget_percent=0.5, allocation='energy')


@pytest.fixture
def setting():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (24, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(24) % 3
    images[labels == 1, 0] //= 4
    images[labels == 2, 1] //= 4
    task = Task((images, labels), (images[:6], labels[:6]), 3, (images[:3], labels[:3]))
    return Setting(task, tiny_vit, 0, iterations=4, batch=8)


def test_the_head_is_fitted_on_frozen_features(setting):
    drawn, fitted = setting.model().state_dict(), setting.model(40).state_dict()
    changed = {name for name, value in fitted.items() if not torch.equal(value, drawn[name])}
    assert changed == {'head.weight', 'head.bias'}
    images, labels = setting.task.train
    with torch.no_grad():
        before, after = (
            float(small_loss(setting.model(steps).eval()(images), labels)) for steps in (0, 40)
        )
    assert after < 0.7 * before


@pytest.mark.parametrize(
    'recipe',
    [
        Recipe(dict(type='linear')),
        Recipe(dict(type='gps', loss='task')),
        Recipe(dict(type='lora', rank=1), start=True),
        Recipe(dict(type='cdra', budget_percent=0.5, rank_rule='count')),
        Recipe(dict(ENERGY, start='gradient')),
        Recipe(ENERGY, EnergyRules(vectors=False, sides=(1.0,)), start=True, head_iterations=3),
        Recipe(dict(type='spt_lora', rank=1, budget_percent=0.5)),
        Recipe(dict(type='vpt_deep', num_prompts=2)),
    ],
    ids=lambda recipe: recipe.method['type'],
)
def test_every_method_plans_and_trains_and_leaves_the_models_as_they_were(setting, recipe):
    head = recipe.head_iterations
    state = {name: value.clone() for name, value in setting.model(head).state_dict().items()}
    plan, start = setting.plan(recipe)
    begins = recipe.start or recipe.method.get('start') == 'gradient'
    assert set(start) == ({block.name for block in plan.blocks} if begins else set())
    if recipe.method['type'] == 'cdra':
        total = sum(p.numel() for p in setting.model().backbone.parameters())
        assert 0 < plan.num_trainable <= total // 200
    if recipe.rules is not None:
        assert not plan.vectors
    found = setting.train(plan, start, 1e-3, head)
    assert found.params == plan.num_trainable and math.isfinite(found.val_loss)
    assert found == setting.train(plan, start, 1e-3, head)  # dropout and all
    for name, value in setting.model(head).state_dict().items():
        assert torch.equal(value, state[name]), name


def test_training_starts_with_the_drawn_or_the_fitted_head(setting):
    setting.iterations = 1
    drawn, fitted = (setting.train(Plan(), {}, 1e-3, steps) for steps in (0, 40))
    assert fitted.train_loss < 0.8 * drawn.train_loss


def test_the_test_images_are_looked_at_and_may_be_absent(setting):
    found = setting.train(Plan(), {}, 1e-3, 40)
    assert found.test in (0, pytest.approx(100 / 3), pytest.approx(200 / 3), 100)
    setting.task = replace(setting.task, test=None)
    assert setting.train(Plan(), {}, 1e-3, 40) == replace(found, test=None)


def test_losses_of_samples_are_means_over_what_has_a_label():
    model = SmallModel(tiny_vit(32), 3, True).eval()
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 32, 32))
    labels[1, :16] = 255
    with torch.no_grad():
        found = sample_losses(model)(model, (images, labels))
        for n in range(2):
            alone = small_loss(model(images[n : n + 1]), labels[n : n + 1])
            torch.testing.assert_close(found[n], alone)
