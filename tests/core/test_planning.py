"""From scores or masks to a plan: ranks, vectors, and the best plan within a budget."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdra_mm.core import CDRAError, PlanError, make_plan, plan_from_masks
from tests.reference import planning as reference
from tests.reference.selection import top_k

RULES = st.sampled_from(['eq7', 'count', 1, 3])


@st.composite
def problems(draw, shapes=((4, 4), (6, 3), (2, 8), (10,), (4,), (5, 5))):
    """Scores with structure: some tensors, rows and columns matter more, many ties and zeros."""
    chosen = draw(st.lists(st.sampled_from(shapes), min_size=1, max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    levels = draw(st.sampled_from([2, 5, 1000]))
    # Close together: as many values within one part in a thousand as over the whole range.
    offset = draw(st.sampled_from([0, 0, 10**5]))
    scores = {}
    for index, shape in enumerate(chosen):
        score = torch.randint(0, levels, shape, generator=generator).float()
        if len(shape) == 2:
            score *= torch.randint(0, 3, (shape[0], 1), generator=generator)
            score *= torch.randint(0, 3, (1, shape[1]), generator=generator)
        scores[f'w{index}'] = score * draw(st.sampled_from([0.1, 1.0, 10.0])) + offset
    return scores


def rules(rule, min_rank, beta, also_train):
    """The same choices in the words of the oracle and of the package."""
    ours = {'rule': rule, 'min_rank': min_rank, 'beta': beta, 'also_train': also_train}
    theirs = {**ours, 'rank_rule': rule}
    del theirs['rule']
    return ours, theirs


@given(
    scores=problems(),
    data=st.data(),
    rule=RULES,
    min_rank=st.integers(0, 2),
    beta=st.sampled_from([1, 2.5, 5, 100]),
)
def test_make_plan_follows_the_steps(scores, data, rule, min_rank, beta):
    """Select, compact, rank: each as its oracle says."""
    total = sum(score.numel() for score in scores.values())
    count = data.draw(st.integers(1, total))
    ours, theirs = rules(rule, min_rank, beta, {'cls_token': 3})
    plan = make_plan(scores, num_sensitive=count, fingerprint='f', **theirs)
    masks = top_k(scores, count)
    sizes = reference.block_sizes(masks, rule, min_rank)
    adapted = {b.name: (list(b.rows), list(b.cols), b.rank) for b in plan.blocks}
    dropped = {b.name: (list(b.rows), list(b.cols), b.rank) for b in plan.dropped}
    assert adapted == {name: size for name, size in sizes.items() if size[2] > 0}
    assert dropped == {name: size for name, size in sizes.items() if size[2] == 0}
    vectors = {v.name: v.indices and list(v.indices) for v in plan.vectors}
    assert vectors == reference.vector_sizes(masks, beta)
    assert plan.num_trainable == reference.num_trainable(masks, **ours)
    assert (plan.num_competing, plan.num_sensitive) == (total, count)
    assert dict(plan.also_train) == {'cls_token': 3}
    assert plan.fingerprint == 'f'
    for record in (*plan.blocks, *plan.dropped, *plan.vectors):
        assert record.num_sensitive == int(masks[record.name].sum())
    for block in (*plan.blocks, *plan.dropped):
        assert tuple(block.shape) == tuple(scores[block.name].shape)


@given(scores=problems(), data=st.data(), rule=RULES, min_rank=st.integers(0, 1))
def test_plan_from_masks_equals_make_plan(scores, data, rule, min_rank):
    count = data.draw(st.integers(1, sum(score.numel() for score in scores.values())))
    both = {'rank_rule': rule, 'min_rank': min_rank}
    one = make_plan(scores, num_sensitive=count, **both)
    other = plan_from_masks(top_k(scores, count), **both)
    for field in ('blocks', 'dropped', 'vectors', 'num_trainable', 'num_competing'):
        assert getattr(one, field) == getattr(other, field)


@given(scores=problems())
def test_make_plan_satisfies_eq7(scores):
    total = sum(score.numel() for score in scores.values())
    for gamma in (0.2, 0.6, 1.0):
        plan = make_plan(scores, gamma=gamma)
        for b in (*plan.blocks, *plan.dropped):
            area = len(b.rows) * len(b.cols)
            cost = (len(b.rows) + len(b.cols)) * b.shape[0] * b.shape[1]
            assert b.num_sensitive * area >= b.rank * cost
            assert b.rank == min(len(b.rows), len(b.cols)) or (
                b.num_sensitive * area < (b.rank + 1) * cost
            )
        matrices = sum(b.num_params for b in plan.blocks)
        assert matrices <= plan.num_sensitive <= total


@settings(max_examples=60)
@given(
    scores=problems(),
    rule=RULES,
    min_rank=st.integers(0, 1),
    also=st.integers(0, 4),
    budget=st.integers(0, 120),
    beta=st.sampled_from([2, 5]),
)
def test_make_plan_within_a_budget_equals_trying_every_count(
    scores, rule, min_rank, also, budget, beta
):
    ours, theirs = rules(rule, min_rank, beta, {'cls_token': also} if also else None)
    best = reference.within_budget(scores, budget, **ours)
    if best is None:
        with pytest.raises(PlanError):
            make_plan(scores, budget_params=budget, **theirs)
    else:
        plan = make_plan(scores, budget_params=budget, **theirs)
        assert plan.num_trainable == best <= budget


@pytest.mark.parametrize('offset', [0.0, 1e6], ids=['far apart', 'close together'])
def test_make_plan_finds_the_best_count_of_a_rule_that_is_not_monotone(offset):
    """With 'count', one more entry in a new row can lower the rank, and the size with it."""
    score = torch.arange(36, 0, -1.0).view(6, 6) / 8
    score[:4, :4] += 10
    score[4, 0] += 9
    score += offset
    sizes = [
        reference.num_trainable(top_k({'w': score}, count), rule='count') for count in range(1, 37)
    ]
    assert sizes != sorted(sizes)
    for budget in range(reference.smallest_budget({'w': score}, rule='count'), 40):
        best = reference.within_budget({'w': score}, budget, rule='count')
        plan = make_plan({'w': score}, budget_params=budget, rank_rule='count')
        assert plan.num_trainable == best


@pytest.mark.parametrize('seed', [0, 1, 4])
def test_make_plan_finds_the_best_count_among_scores_of_one_magnitude(seed):
    """All scores within a factor of two: the best plan may hide between two that both fit."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(10, 10, generator=generator)
    for sides in ((10, 1), (1, 10)):
        score *= torch.rand(sides, generator=generator)
    scores = {'w': score + 1}
    least = reference.smallest_budget(scores, rule='count')
    for budget in range(least, 100, 3):
        plan = make_plan(scores, budget_params=budget, rank_rule='count')
        assert plan.num_trainable == reference.within_budget(scores, budget, rule='count')


@given(scores=problems(), rule=RULES, also=st.integers(0, 4))
def test_make_plan_names_the_smallest_budget_that_works(scores, rule, also):
    options = {'rank_rule': rule, 'also_train': {'cls_token': also} if also else None}
    with pytest.raises(PlanError, match=r'budget_params') as error:
        make_plan(scores, budget_params=also, **options)
    least = reference.smallest_budget(scores, rule=rule, also_train=options['also_train'])
    if least is None:
        return
    assert re.search(rf'\b{least}\b', str(error.value).replace(',', '').replace('_', ''))
    assert make_plan(scores, budget_params=least, **options).num_trainable == least


def test_make_plan_within_a_budget_of_many_entries():
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for i in range(12):
        rows, cols = (
            torch.rand(256, 1, generator=generator),
            torch.rand(1, 128, generator=generator),
        )
        scores[f'b{i}.weight'] = (rows * cols * torch.rand(256, 128, generator=generator)) ** 4
        scores[f'b{i}.bias'] = torch.rand(256, generator=generator) ** 8
    for rule in ('eq7', 'count', 4):
        sizes = []
        for budget in (6_000, 12_000, 20_000):
            plan = make_plan(scores, budget_params=budget, rank_rule=rule)
            assert 0.9 * budget < plan.num_trainable <= budget
            count = plan.num_sensitive
            again = make_plan(scores, num_sensitive=count, rank_rule=rule)
            assert again.num_trainable == plan.num_trainable
            sizes.append(plan.num_trainable)
        assert sizes == sorted(sizes)


def test_make_plan_counts_everything_against_the_budget():
    """Adapters, vectors and what is trained besides."""
    generator = torch.Generator().manual_seed(3)
    scores = {'w': torch.rand(8, 8, generator=generator), 'b': torch.rand(12, generator=generator)}
    rules = {'also_train': {'cls_token': 30}}
    for budget in range(reference.smallest_budget(scores, **rules), 100, 5):
        plan = make_plan(scores, budget_params=budget, **rules)
        assert plan.num_trainable == reference.within_budget(scores, budget, **rules)
        assert plan.vectors and plan.blocks
        kinds = [sum(record.num_params for record in part) for part in (plan.blocks, plan.vectors)]
        assert plan.num_trainable == sum(kinds) + 30


def test_make_plan_does_not_change_the_scores():
    scores = {'w': torch.rand(6, 6), 'b': torch.rand(8)}
    before = {name: score.clone() for name, score in scores.items()}
    make_plan(scores, budget_params=40)
    make_plan(scores, gamma=0.5)
    assert all(torch.equal(scores[name], before[name]) for name in scores)


def test_make_plan_records_how_it_was_made():
    plan = make_plan({'w': torch.rand(6, 6)}, gamma=0.5, rank_rule='count', settings={'seed': 3})
    assert plan.settings['seed'] == 3


def test_vector_is_trained_whole_from_a_fifth():
    chosen = {'a': torch.zeros(10, dtype=torch.bool), 'b': torch.zeros(10, dtype=torch.bool)}
    chosen['a'][[7, 3]] = True
    chosen['b'][4] = True
    plan = plan_from_masks(chosen)
    assert [(v.name, v.indices, v.num_params) for v in plan.vectors] == [
        ('a', None, 10),
        ('b', (4,), 1),
    ]
    assert plan_from_masks(chosen, beta=4).num_trainable == 3


SCORES = {'w': torch.rand(6, 6), 'b': torch.rand(8)}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({}, r'(?s)gamma.*num_sensitive.*budget_params'),
        ({'gamma': 0.1, 'budget_params': 9}, r'(?s)gamma.*budget_params'),
        ({'num_sensitive': 4, 'budget_params': 9}, r'(?s)num_sensitive.*budget_params'),
        ({'gamma': 2.0}, r'gamma.*2'),
        ({'num_sensitive': 1000}, r'num_sensitive.*1000'),
        ({'budget_params': 0}, r'budget_params.*0'),
        ({'budget_params': -5}, r'budget_params.*-5'),
        ({'gamma': 0.5, 'rank_rule': 'eq9'}, r'(?s)rank_rule.*eq9|rule.*eq9'),
        ({'gamma': 0.5, 'min_rank': -1}, r'min_rank.*-1'),
        ({'gamma': 0.5, 'beta': 0}, r'beta.*0'),
        ({'gamma': 0.5, 'also_train': {'cls_token': -3}}, r'(?s)cls_token.*-3'),
    ],
)
def test_make_plan_refuses_settings_that_make_no_sense(options, message):
    with pytest.raises(CDRAError, match=message):
        make_plan(SCORES, **options)


@pytest.mark.parametrize(
    ('chosen', 'message'),
    [
        (torch.ones(2, 2), 'x.weight'),
        (torch.ones(2, 2, 2, dtype=torch.bool), 'x.weight'),
        (torch.tensor(True), 'x.weight'),
    ],
)
def test_plan_from_masks_refuses_what_is_no_mask(chosen, message):
    with pytest.raises((CDRAError, TypeError), match=message):
        plan_from_masks({'x.weight': chosen})
