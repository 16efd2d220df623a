"""Short trainings by any method: their head, their plan, their metrics, and nothing left behind."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from cdra_mm.benchmark.small_tasks import Task
from cdra_mm.benchmark.small_training import SmallModel, sample_losses, small_loss
from cdra_mm.core import ConfigError
from cdra_mm.core.model.row_int8 import is_int8
from cdra_mm.core.planning.by_gradient import plan_by_gradient
from cdra_mm.core.planning.offers import GradientRules
from cdra_mm.tables.small_memory import Remembered
from cdra_mm.tables.small_recipes import Recipe
from cdra_mm.tables.small_runs import Setting
from tests.benchmark.test_rounding import tiny_vit

LINEAR = Recipe(dict(type='linear'))
FITTED = Recipe(dict(type='linear'), head_iterations=40)
NOAH = dict(
    type='noah', prompt_dims=[1, 2], lora_dims=[1, 2], adapter_dims=[1, 2], supernet_iters=3,
    population=4, num_parents=2, num_mutations=2, num_crossovers=2, generations=1,
)  # fmt: skip
ENERGY = dict(type='cdra', budget_percent=0.5, allocation='energy', start='random')


@pytest.fixture
def setting():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (24, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(24) % 3
    images[labels == 1, 0] //= 4
    images[labels == 2, 1] //= 4
    task = Task((images, labels), (images[:6], labels[:6]), 3, (images[:3], labels[:3]))
    return Setting(task, tiny_vit, 0, iterations=4, batch=8)


def trained(setting, recipe, rate=1e-3, **more):
    return setting.train(setting.attach(recipe), rate, recipe, **more)


@pytest.mark.parametrize('allocation', ['descent', 'energy'])
def test_rules_are_in_the_currency_of_the_methods_allocation(allocation):
    generator = torch.Generator().manual_seed(0)
    backbone = tiny_vit(32)
    scores = {
        name: torch.randn(p.shape, generator=generator) * (1 + 5 * (p.dim() == 1))
        for name, p in backbone.named_parameters()
        if name.startswith('blocks.') and p.dim() < 3
    }
    method = dict(type='cdra', budget_percent=0.5, allocation=allocation, start='random')
    plan, _ = Recipe(method, rules=GradientRules(max_rank=2)).plan(backbone, lambda _: scores)
    budget = sum(p.numel() for p in backbone.parameters()) // 200
    expected = plan_by_gradient(scores, budget, GradientRules(allocation, max_rank=2))
    assert (plan.blocks, plan.vectors) == (expected.blocks, expected.vectors)
    (other,) = {'descent', 'energy'} - {allocation}
    assert plan.blocks != plan_by_gradient(scores, budget, GradientRules(other, max_rank=2)).blocks


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
        Recipe(
            ENERGY,
            rules=GradientRules(vectors=False, sides=(1.0,)),
            start=True,
            head_iterations=3,
        ),
        Recipe(dict(type='cdra', budget_percent=0.5, rank_rule='count'), base_dtype='int8'),
        Recipe(
            ENERGY,
            rules=GradientRules(vectors=False),
            start=True,
            gradient='signal',
            again=2,
        ),
        Recipe(ENERGY, rules=GradientRules(vectors=False), start=True, gradient='momentum'),
        Recipe(dict(type='spt_lora', rank=1, budget_percent=0.5)),
        Recipe(dict(type='vpt_deep', num_prompts=2)),
        Recipe(NOAH),
        Recipe(peft=dict(peft_type='LORA', r=1, target_modules=['qkv'])),
    ],
    ids=lambda recipe: recipe.method.get('type', 'peft'),
)
def test_every_method_plans_and_trains_and_leaves_the_models_as_they_were(setting, recipe):
    head = recipe.head_iterations
    state = {name: value.clone() for name, value in setting.model(head).state_dict().items()}
    attached = setting.attach(recipe)
    if recipe.method.get('type') == 'cdra':
        total = sum(p.numel() for p in setting.model().backbone.parameters())
        assert 0 < attached.params <= total // 200 and attached.blocks
    if recipe.rules is not None:
        assert not attached.vectors
    found = setting.train(attached, 1e-3, recipe)
    assert found.params == attached.params and math.isfinite(found.val_loss)
    assert found == setting.train(attached, 1e-3, recipe)  # dropout and all
    for name, value in setting.model(head).state_dict().items():
        assert torch.equal(value, state[name]), name


def test_factors_begin_where_the_gradient_says_if_they_are_to(setting):
    backbone, scores = setting.model().backbone, setting.scores
    plan, start = Recipe(ENERGY, start=True).plan(backbone, scores)
    assert set(start) == {block.name for block in plan.blocks}
    own, same = Recipe(dict(ENERGY, start='gradient')).plan(backbone, scores)
    assert own.blocks == plan.blocks
    assert all(torch.equal(start[name], same[name]) for name in start)
    assert Recipe(ENERGY).plan(backbone, scores)[1] == {}


def test_training_starts_with_the_drawn_or_the_fitted_head(setting):
    setting.iterations = 1
    drawn, fitted = (trained(setting, recipe) for recipe in (LINEAR, FITTED))
    assert fitted.train_loss < 0.8 * drawn.train_loss


def test_the_test_images_are_looked_at_and_may_be_absent(setting):
    found = trained(setting, FITTED)
    assert found.test in (0, pytest.approx(100 / 3), pytest.approx(200 / 3), 100)
    setting.task = replace(setting.task, test=None)
    assert trained(setting, FITTED) == replace(found, test=None)


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


def test_a_base_in_int8_is_trained_over(setting):
    count = dict(type='cdra', budget_percent=0.5, rank_rule='count')
    put = setting.attach(Recipe(count, base_dtype='int8')).put(
        copy.deepcopy(setting.model()).backbone
    )
    assert any(is_int8(parameter) for parameter in put.parameters())
    plain = setting.attach(Recipe(count)).put(copy.deepcopy(setting.model()).backbone)
    assert not any(is_int8(parameter) for parameter in plain.parameters())


def test_tuners_of_peft_are_put_on_and_saved(setting):
    lora = Recipe(peft=dict(peft_type='LORA', r=2, target_modules=['qkv']))
    attached = setting.attach(lora)
    assert attached.params == 2 * 2 * (48 + 144)  # rank, blocks, sides
    whole = setting.attach(Recipe(dict(type='full')))
    for found in (attached, whole, setting.attach(Recipe(dict(type='lora', rank=2)))):
        backbone = found.put(copy.deepcopy(setting.model().backbone))
        trained = [p for p in backbone.parameters() if p.requires_grad]
        assert sum(p.numel() for p in trained) == found.params
        assert 4 * found.params < found.file_bytes(backbone) < 4 * found.params + 6000


def test_ranks_of_adalora_follow_its_own_schedule(setting):
    recipe = Recipe(
        peft=dict(
            peft_type='ADALORA', init_r=4, target_r=1, tinit=0, tfinal=1, deltaT=1, total_step=4,
            target_modules=['qkv'],
        )
    )  # fmt: skip
    attached = setting.attach(recipe)
    steps = []
    told = replace(attached, schedule=lambda put, step: steps.append(step))
    setting.train(told, 1e-3, LINEAR)
    assert steps == [0, 1, 2, 3]
    put = attached.put(copy.deepcopy(setting.model().backbone))
    for _ in range(4):
        put(setting.task.train[0].float()).sum().backward()
        attached.after_step(put)(2)
    ranks = put.peft_config['default'].rank_pattern
    assert sum(map(sum, ranks.values())) < 4 * len(ranks)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(peft_type='LARA'), "'LARA'.*did you mean 'LORA'"),
        (dict(peft_type='LORA', rank=3), 'peft LORA: .*rank'),
    ],
)
def test_wrong_tuners_are_refused(setting, settings, message):
    with pytest.raises(ConfigError, match=message):
        setting.attach(Recipe(peft=settings))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_what_is_kept_is_what_the_pretrained_head_still_says(setting, tmp_path, dtype):
    generator = torch.Generator().manual_seed(1)
    head = {'head.weight': torch.randn(9, 48, generator=generator), 'head.bias': torch.zeros(9)}
    head = {name: value.to(dtype) for name, value in head.items()}
    save_file(head, tmp_path / 'weights.safetensors')
    backbone, images = setting.model().backbone, setting.task.train[0]
    remembered = Remembered(backbone, str(tmp_path / 'weights.safetensors'), images)
    assert remembered.kept(backbone) == 100
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-1)
    assert remembered.kept(other) < 90
    frozen = trained(setting, LINEAR, remembered=remembered)
    assert frozen.kept == 100
    tuned = trained(setting, Recipe(dict(type='full')), 1e-1, remembered=remembered)
    assert tuned.kept < 100


def test_parts_of_what_is_trained_have_rates_of_their_own(setting):
    recipe = Recipe(dict(type='lora', rank=1), rate_factors={'up': 1e-6})
    attached = setting.attach(recipe)
    put = attached.put(copy.deepcopy(setting.model().backbone))
    groups = {f'{rate:g}': {id(p) for p in group} for group, rate in recipe.groups(put, 1e-2)}
    named = {name: id(p) for name, p in put.named_parameters() if p.requires_grad}
    ups = {of for name, of in named.items() if name.endswith('.up')}
    assert ups and groups == {'0.01': set(named.values()) - ups, '1e-08': ups}
    # `up` starts at zero: hardly trained, it leaves the backbone as the head alone has it.
    slow, alone = (trained(setting, given, 1e-2) for given in (recipe, LINEAR))
    assert slow.val_loss == pytest.approx(alone.val_loss, rel=1e-4)
    plain = trained(setting, Recipe(dict(type='lora', rank=1)), 1e-2)
    assert plain.val_loss != pytest.approx(alone.val_loss, rel=1e-3)


@pytest.mark.parametrize('factor', [0, -1, float('inf'), float('nan'), 'fast'])
def test_factors_on_rates_are_checked(factor):
    with pytest.raises(ConfigError, match='rate_factors: down=.*above 0'):
        Recipe(dict(type='lora'), rate_factors={'down': factor})


def test_the_signal_is_the_mean_gradient_over_the_size_of_single_ones(setting):
    signal = setting.scores('signal')
    model = setting.model()
    images, labels = (torch.cat(part) for part in zip(*setting._scored(), strict=True))
    singles = []
    for n in range(len(images)):
        model.zero_grad()
        small_loss(model(images[n : n + 1]), labels[n : n + 1]).backward()
        singles.append(model.backbone.blocks[0].mlp.fc1.weight.grad.clone())
    each = torch.stack(singles)
    expected = each.mean(0) / each.square().mean(0).sqrt()
    found = signal['blocks.0.mlp.fc1.weight']
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_momentum_is_the_average_under_heads_that_are_fitted_on(setting):
    found = setting.scores('momentum', 3)
    each = [setting.scores('mean_gradient', steps) for steps in (3, 8, 13, 23)]
    for name, value in found.items():
        torch.testing.assert_close(value, sum(one[name] for one in each) / 4)
    assert any(not torch.equal(value, each[0][name]) for name, value in found.items())


def test_a_second_allocation_goes_on_from_what_was_learnt(setting, monkeypatch):
    setting.iterations = 6
    once, twice = (
        Recipe(ENERGY, rules=GradientRules(max_rank=1), start=True, again=again) for again in (0, 4)
    )
    seen = []
    attach = Recipe.attach

    def watched(recipe, backbone, *rest):
        seen.append({name: value.clone() for name, value in backbone.state_dict().items()})
        return attach(recipe, backbone, *rest)

    monkeypatch.setattr(Recipe, 'attach', watched)
    found = trained(setting, twice)
    first, second = seen
    assert set(first) == set(second)  # plain again
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert any(name.endswith('fc1.weight') for name in moved)
    assert found.params <= sum(p.numel() for p in setting.model().backbone.parameters()) // 200
    assert found != trained(setting, once)


def test_a_second_allocation_changes_nothing_else(setting):
    """Of a head alone, where there is nothing to merge, it is the training as it was."""
    again = replace(LINEAR, again=2)
    found, expected = (trained(setting, recipe, 1e-2) for recipe in (again, LINEAR))
    assert found.val_loss == expected.val_loss and found.metric == expected.metric


@pytest.mark.parametrize('gradient', ['mean', None])
def test_an_unknown_gradient_is_named(gradient):
    with pytest.raises(ConfigError, match='gradient.*mean_gradient'):
        Recipe(dict(type='lora'), gradient=gradient)


def test_momentum_is_of_the_pretrained_backbone():
    with pytest.raises(ConfigError, match="again=2: not with gradient='momentum'"):
        Recipe(dict(type='lora'), gradient='momentum', again=2)


def test_a_small_model_computes_where_its_images_lie():
    """On tensors without values, of a GPU that need not be there: no two devices are mixed."""
    model = SmallModel(tiny_vit(32), 3, True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = {
            name: torch.empty(value.shape, device='cuda', requires_grad=True)
            for name, value in model.state_dict().items()
        }
        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device='cuda')
        labels = torch.zeros(2, 32, 32, dtype=torch.int64, device='cuda')
        loss = small_loss(torch.func.functional_call(model, state, (images,)), labels)
        assert loss.device.type == 'cuda'


def test_data_and_models_of_a_setting_are_on_its_device(setting):
    moved = Setting(setting.task, tiny_vit, 0, iterations=1, batch=2, device='meta')
    tensors = [*moved.model().state_dict().values(), *moved.task.train, *moved.task.val]
    assert {value.device.type for value in (*tensors, *moved.task.test)} == {'meta'}
    assert replace(setting.task, test=None).to('meta').test is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_a_gpu_trains_what_a_cpu_trains(setting):
    recipe = Recipe(dict(ENERGY, start='gradient'))
    there = Setting(setting.task, tiny_vit, 0, iterations=4, batch=8, device='cuda')
    found, expected = (trained(one, recipe) for one in (there, setting))
    assert found.params == expected.params
    assert found.val_loss == pytest.approx(expected.val_loss, rel=1e-3)
