"""Blocks, ranks and vectors by the mean gradient."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core import (
    Block,
    ConfigError,
    Plan,
    PlanError,
    adapters,
    apply_plan,
    base_state,
    find_targets,
)
from cdra_mm.core.planning.by_gradient import plan_by_gradient, start_of
from cdra_mm.core.planning.offers import CURRENCIES, START_LENGTH, GradientRules, market_of
from cdra_mm.core.scoring.mean_gradients import mean_gradients
from tests.models import MODELS, images, losses
from tests.reference import by_gradient as reference
from tests.reference.by_gradient import best_gain, offers

SIDES = (1.0, 0.5, 0.25)
RULES = {each: GradientRules(each, SIDES, max_rank=3) for each in CURRENCIES}
by_each_currency = pytest.mark.parametrize('currency', CURRENCIES)


def random_gradients(seed, matrices=3, vectors=2):
    """Matrices whose energy lies in few rows, columns and directions, and vectors."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    found = {}
    for n in range(matrices):
        high, wide = (int(torch.randint(4, 13, (), generator=generator)) for _ in range(2))
        matrix = draw(high, 2) @ draw(2, wide) + 0.2 * draw(high, wide)
        matrix *= draw(high, 1).square() * draw(1, wide).square()
        found[f'm{n}.weight'] = matrix * 3 ** float(draw(1))
    for n in range(vectors):
        found[f'm{n}.bias'] = draw(int(torch.randint(3, 9, (), generator=generator)))
    return found


def gain_of(plan, gradients, currency):
    """What a plan gains, by the definition of a currency."""
    total = 0.0
    for block in plan.blocks:
        part = gradients[block.name][list(block.rows)][:, list(block.cols)]
        total += reference.gain(part, block.rank, currency)
    for vector in plan.vectors:
        total += reference.gain(gradients[vector.name], 0, currency)
    return total


@by_each_currency
@pytest.mark.parametrize('seed', range(8))
def test_no_choice_of_its_price_gains_more_than_a_plan_that_ends_on_a_step(seed, currency):
    """Exhaustively, at all budgets at which nothing is left over."""
    gradients = random_gradients(seed)
    rules = RULES[currency]
    every = [offers(g, SIDES, rules.max_rank, currency) for g in gradients.values()]
    tried = 0
    for budget in range(8, 120, 3):
        try:
            plan = plan_by_gradient(gradients, budget, rules)
        except PlanError:
            continue
        assert plan.num_trainable <= budget
        gain = gain_of(plan, gradients, currency)
        assert gain <= best_gain(every, budget) * (1 + 1e-5)
        exact = plan_by_gradient(gradients, plan.num_trainable, rules)
        if exact.num_trainable == plan.num_trainable:
            tried += gain >= best_gain(every, plan.num_trainable) * (1 - 1e-5)
        # What a budget leaves over is less than what the next step costs: of the best by a share.
        assert gain >= 0.8 * best_gain(every, budget)
    assert tried >= 3


@by_each_currency
@pytest.mark.parametrize('seed', range(4))
def test_the_share_of_energy_is_what_the_plan_can_follow(seed, currency):
    gradients = random_gradients(seed)
    plan = plan_by_gradient(gradients, 60, RULES[currency])
    total = sum(float(g.double().square().sum()) for g in gradients.values())
    assert plan.settings['energy_share'] == pytest.approx(
        gain_of(plan, gradients, 'energy') / total,
        abs=5.1e-5,  # it has four digits
    )


def test_also_train_counts_and_a_larger_budget_follows_more():
    gradients = random_gradients(1)
    rules = RULES['energy']
    plans = [plan_by_gradient(gradients, budget, rules) for budget in (30, 60, 120)]
    shares = [plan.settings['energy_share'] for plan in plans]
    assert shares == sorted(shares) and shares[0] < shares[-1]
    also = plan_by_gradient(gradients, 60, rules, also_train={'cls_token': 20})
    assert also.num_trainable <= 60
    assert also.settings['energy_share'] < shares[1]


def test_without_vectors_none_is_bought():
    gradients = {'a.weight': torch.eye(4), 'a.bias': 100 * torch.ones(4)}
    assert [v.name for v in plan_by_gradient(gradients, 20).vectors] == ['a.bias']
    assert not plan_by_gradient(gradients, 20, GradientRules(vectors=False)).vectors


def test_the_first_step_follows_the_gradient_of_the_block():
    """``up`` gets G down^T, so the update after one step of gradient descent is -G down^T down."""
    gradient = random_gradients(3)['m0.weight']
    plan = plan_by_gradient({'m0.weight': gradient}, 25, RULES['energy'])
    (block,) = plan.blocks
    (down,) = start_of(plan, {'m0.weight': gradient}).values()
    part = gradient[list(block.rows)][:, list(block.cols)].double()
    update = part @ down.T.double() @ down.double() / START_LENGTH**2
    u, s, v = torch.linalg.svd(part, full_matrices=False)
    r = block.rank
    torch.testing.assert_close(update, u[:, :r] * s[:r] @ v[:r], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(down.norm(dim=1), torch.full((r,), START_LENGTH))


@pytest.mark.parametrize('kind', MODELS)
def test_the_gain_in_descent_is_what_a_first_step_of_adam_lowers_the_loss_by(kind):
    """Per length of that step, on the samples that the gradients are of."""
    model = MODELS[kind]().double().eval()
    batch = images(6, torch.float64)
    gradients = mean_gradients(model, [batch], losses)
    plan = plan_by_gradient(gradients, 300, GradientRules('descent', max_rank=3))
    assert plan.blocks and plan.vectors
    apply_plan(model, plan, start=start_of(plan, gradients))
    rate = 1e-7
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate, eps=1e-30)
    before = losses(model, batch).mean()
    before.backward()
    optimizer.step()
    descent = (before - losses(model, batch).mean()).item() / rate
    assert descent == pytest.approx(gain_of(plan, gradients, 'descent'), rel=1e-3)


def test_factors_begin_where_they_are_told_and_the_output_is_the_base():
    torch.manual_seed(0)
    model = MODELS['fused']().eval()
    targets = find_targets(model)
    gradients = {n: torch.randn(t.shape) for n, t in targets.items() if len(t.shape) < 3}
    plan = plan_by_gradient(gradients, 400, GradientRules(max_rank=2))
    start = start_of(plan, gradients)
    weight = {name: p.detach().clone() for name, p in model.named_parameters()}
    apply_plan(model, plan, start=start)
    for block in plan.blocks:
        adapter = adapters(model)[block.name]
        assert torch.equal(adapter.down, start[block.name])
        assert not adapter.up.any()
    base = base_state(model)
    assert all(torch.equal(base[name], value) for name, value in weight.items())


def test_a_start_that_fits_no_block_is_refused_and_the_model_is_as_it_was():
    model = MODELS['fused']()
    name, target = next((n, t) for n, t in find_targets(model).items() if len(t.shape) == 2)
    rows, cols = target.shape
    plan = Plan(blocks=(Block(name, (rows, cols), (0, 1), (0, 1, 2), 2, 0),))
    for start, words in (
        ({name: torch.zeros(2, 4)}, r'first factor of \(2, 4\), expected \(2, 3\)'),
        ({'no.weight': torch.zeros(2, 3)}, 'the name of a block of the plan'),
    ):
        with pytest.raises(PlanError, match=words):
            apply_plan(model, plan, start=start)
        assert not any('cdra' in key for key in model.state_dict())


@pytest.mark.parametrize(
    ('gradients', 'budget', 'words'),
    [
        ({'a.weight': torch.ones(4, 4)}, 1, 'the smallest adapter has 2'),
        ({'a.weight': torch.zeros(4, 4)}, 100, 'none of the 1 targets is a matrix with a grad'),
        (
            {'a.weight': torch.ones(4, 4), 'a.bias': torch.full((4,), 9.0)},
            5,
            "vectors, which gain more per parameter, take 4 of it; give more, or set compete='matr",
        ),
        ({'a.weight': torch.full((2, 2), torch.nan)}, 100, 'squared length nan: expected a finite'),
        ({'a.weight': torch.ones(2, 2, 2)}, 100, r'\(2, 2, 2\)'),
    ],
)
def test_what_cannot_be_planned_is_said(gradients, budget, words):
    with pytest.raises(PlanError, match=words):
        plan_by_gradient(gradients, budget)


@by_each_currency
@pytest.mark.parametrize('scale', [1e-30, 1e-22, 1e18, 1e30])
def test_a_plan_does_not_depend_on_the_scale_of_the_gradients(scale, currency):
    gradient = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    gradient[[3, 17, 30]] *= 50
    gradient[:, 7:12] *= 30
    rules = GradientRules(currency)
    (expected,) = plan_by_gradient({'a.weight': gradient}, 260, rules).blocks
    assert {3, 17, 30} <= set(expected.rows) and {*range(7, 12)} <= set(expected.cols)
    # Rows bring descent, and columns only a longer gradient along them.
    small = expected.rows if currency == 'energy' else expected.cols
    assert len(small) < 40
    (found,) = plan_by_gradient({'a.weight': gradient * scale}, 260, rules).blocks
    assert found == expected


@by_each_currency
@pytest.mark.parametrize('decay', [0.0, 0.7, 2.0])
@pytest.mark.parametrize('size', [1e-20, 1.0])
def test_gains_of_blocks_of_a_large_matrix_are_those_of_whole_decompositions(decay, size, currency):
    generator = torch.Generator().manual_seed(int(10 * decay))
    left, right = (torch.randn(n, 40, generator=generator) for n in (160, 128))
    gradient = left * torch.arange(1.0, 41) ** -decay @ right.T * size
    gradient *= torch.exp(torch.randn(160, 1, generator=generator))
    rules = GradientRules(currency, sides=(1.0, 0.5, 0.375), max_rank=6)
    energy, offered, _ = market_of(gradient, rules)
    assert energy == pytest.approx(float(gradient.double().square().sum()), rel=1e-6)
    found = sorted(offer[:2] for offer in offered)
    expected = sorted(offers(gradient.double(), rules.sides, 6, currency))[1:]
    assert [price for price, _ in found] == [price for price, _ in expected]
    # No directions hold more energy than the leading ones, but some have larger sums.
    most = 1.0001 if currency == 'energy' else 1.01
    for (_, gain), (_, best) in zip(found, expected, strict=True):
        assert 0.99 * best <= gain <= most * best


def test_vectors_alone_make_a_plan_where_no_matrix_competes():
    gradients = {f'{n}.bias': torch.full((4,), float(n)) for n in range(1, 4)}
    plan = plan_by_gradient(gradients, 9)
    assert [vector.name for vector in plan.vectors] == ['2.bias', '3.bias'] and not plan.blocks
    with pytest.raises(PlanError, match='no adapter fits a budget of 3'):
        plan_by_gradient(gradients, 3)


def test_what_a_step_leaves_is_spent_on_what_fits_into_it():
    # Of a matrix of ones no part has more gain per parameter than the whole.
    ones = torch.ones(64, 64)
    (block,) = plan_by_gradient({'a.weight': ones}, 50).blocks
    assert (len(block.rows), len(block.cols), block.rank) == (32, 16, 1)
    spent = plan_by_gradient({'a.weight': ones, 'b.weight': ones}, 128 + 50)
    assert [block.num_params for block in spent.blocks] == [128, 48]


@by_each_currency
@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('budget', [20, 45, 80, 150])
def test_nothing_better_fits_into_what_is_left_of_a_budget(seed, budget, currency):
    gradients = random_gradients(seed)
    plan = plan_by_gradient(gradients, budget, RULES[currency])
    assert plan.num_trainable <= budget
    room = budget - plan.num_trainable
    held = {block.name: block for block in plan.blocks}
    for name, gradient in gradients.items():
        if gradient.dim() == 1:
            continue
        block = held.get(name)
        price, gain = 0, 0.0
        if block is not None:
            part = gradient[list(block.rows)][:, list(block.cols)]
            price = block.num_params
            gain = reference.gain(part, block.rank, currency)
        for other_price, other_gain in offers(gradient.double(), SIDES, 3, currency)[1:]:
            assert other_price - price > room or other_gain <= gain * (1 + 1e-5)


def test_a_budget_above_all_that_there_is_is_told():
    gradients = random_gradients(0)
    with pytest.warns(UserWarning, match='of a budget of 100000 parameters, .* max_rank=3; a lar'):
        plan_by_gradient(gradients, 100_000, RULES['energy'])


@pytest.mark.parametrize(
    'settings',
    [dict(sides=()), dict(sides=(2.0,)), dict(sides=(0.0,)), dict(sides=(float('nan'),)),
     dict(max_rank=0), dict(currency='energie')],
)  # fmt: skip
def test_rules_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        GradientRules(**settings)


def test_an_empty_matrix_is_not_bought():
    plan = plan_by_gradient({'a': torch.ones(0, 4), 'b': torch.ones(4, 4)}, 20)
    assert [block.name for block in plan.blocks] == ['b']


@pytest.mark.parametrize('budget', [50, 100, 127])
@pytest.mark.parametrize('names', [('poor', 'rich'), ('rich', 'poor')])
def test_what_is_left_goes_to_what_gains_the_most(names, budget):
    """Flat gradients: the whole matrix has the best rate, and is too dear."""
    gradients = {'poor': 1e-6 * torch.ones(64, 64), 'rich': torch.ones(64, 64)}
    plan = plan_by_gradient({name: gradients[name] for name in names}, budget)
    bought = {block.name: len(block.rows) + len(block.cols) for block in plan.blocks}
    offers = market_of(gradients['rich'], GradientRules()).offers
    best = max((o for o in offers if o.price <= budget), key=lambda offer: offer.gain)
    assert bought['rich'] == sum(best.sides)
    assert sum(bought.values()) <= budget


def test_ranks_without_gradient_are_not_bought():
    """A gradient of few samples has few directions; those of rounding cost as much as others."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2, side, generator=generator) for side in (128, 96))
    with pytest.warns(UserWarning, match='1344 are left over: nothing else can be gained by what'):
        plan = plan_by_gradient({'a.weight': left.T @ right}, 8 * (128 + 96))
    assert [block.rank for block in plan.blocks] == [2]


@pytest.mark.parametrize(
    ('gradients', 'rules', 'advice'),
    [
        ({'a.weight': (24, 24)}, GradientRules(max_rank=4), 'max_rank=4; a larger one spends'),
        ({'a.weight': (8, 8)}, GradientRules(max_rank=100), 'give less, or let more compete'),
        ({'a.bias': (4,), 'b.bias': (4,)}, GradientRules(), 'give less, or let more compete'),
    ],
)
def test_a_budget_that_is_not_spent_is_told_with_what_helps(gradients, rules, advice):
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(*shape, generator=generator) for name, shape in gradients.items()}
    with pytest.warns(UserWarning, match=advice):
        plan_by_gradient(drawn, 1000, rules)
