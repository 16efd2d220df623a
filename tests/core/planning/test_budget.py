"""The best plan within a budget, over every threshold."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdra_mm.core import PlanError, make_plan
from cdra_mm.core.planning import budget as search
from cdra_mm.core.planning.rules import Rules
from cdra_mm.core.planning.sizes import PlanSizes
from tests.core.planning.problems import FACTORS, RULES, problems, rules
from tests.reference import planning as reference
from tests.reference.selection import top_k


@settings(max_examples=60)
@given(
    scores=problems(),
    factor=FACTORS,
    min_rank=st.integers(0, 1),
    also=st.integers(0, 4),
    budget=st.integers(0, 120),
    beta=st.sampled_from([2, 5]),
)
def test_make_plan_within_a_budget_equals_trying_every_count(
    scores, factor, min_rank, also, budget, beta
):
    rule, alpha = factor
    ours, theirs = rules(rule, min_rank, beta, {'cls_token': also} if also else None, alpha)
    best = reference.within_budget(scores, budget, **ours)
    edge = reference.within_budget(scores, budget, counts=reference.edges(scores), **ours)
    try:
        found = make_plan(scores, budget_params=budget, **theirs).num_trainable
    except PlanError:
        found = None
    if Rules(rule, min_rank, beta, rank_alpha=alpha).monotone:
        assert found == best
    else:  # the best one seen: of all edges, and inside some buckets
        assert (edge or -1) <= (found or -1) <= (best or -1)
    assert found is None or found <= budget


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


@given(scores=problems(), rule=RULES, also=st.integers(0, 4), less=st.integers(0, 2))
def test_make_plan_names_the_smallest_budget_that_works(scores, rule, also, less):
    options = {'rank_rule': rule, 'also_train': {'cls_token': also} if also else None}
    with pytest.raises(PlanError, match=r'budget_params') as error:
        make_plan(scores, budget_params=also - less, **options)
    least = reference.smallest_budget(scores, rule=rule, also_train=options['also_train'])
    if least is None:
        return
    assert re.search(rf'\b{least}\b', str(error.value).replace(',', '').replace('_', ''))
    assert make_plan(scores, budget_params=least, **options).num_trainable == least


def test_make_plan_within_a_budget_parts_scores_that_are_one_bit_apart():
    """Each next entry is in a row and a column of its own; the last two are equal."""
    bits = torch.tensor([3, 2, 1, 1], dtype=torch.int32) + 0x3F800000
    scores = {'w': torch.diag(bits.view(torch.float32))}
    for budget, most in {2: 2, 3: 2, 4: 4, 7: 4, 8: 8, 9: 8}.items():
        plan = make_plan(scores, budget_params=budget, rank_rule=1)
        assert plan.num_trainable == most == 2 * plan.num_sensitive


def test_make_plan_says_what_would_be_enough():
    scores = {'w': torch.eye(4)}
    begin = '^budget_params=5 is too small for any adapter: '
    enough = 'the smallest plan with an adapter trains {} parameters'
    options = {'budget_params': 5, 'rank_rule': 1}
    with pytest.raises(PlanError, match=begin + enough.format(8) + '$'):
        make_plan(scores, **options)
    beside = ', 3 of them beside the adapters and vectors$'
    with pytest.raises(PlanError, match=begin + enough.format(11) + beside):
        make_plan(scores, **options, also_train={'cls_token': 3})
    try_ = "try rank_rule='count', a larger rank_alpha, or min_rank=1$"
    none = f'no threshold gives a rank of 1: {try_}'
    with pytest.raises(PlanError, match=begin + none):
        make_plan({'w': torch.ones(1, 1)}, budget_params=5)


@pytest.mark.parametrize(('rule', 'most'), [('eq7', 1), (2, 1), ('count', search.LOOKS)])
def test_search_looks_into_few_buckets(rule, most, monkeypatch):
    """One where sizes do not fall, so that a budget costs two passes over the scores."""
    inside, looks = search._inside, []
    monkeypatch.setattr(search, '_inside', lambda *args: looks.append(args) or inside(*args))
    scores = {'w': torch.rand(40, 30, generator=torch.Generator().manual_seed(0))}
    make_plan(scores, budget_params=201, rank_rule=rule)
    assert len(looks) == most


def test_search_counts_in_integers():
    """Sums of a model's entries are beyond what fp32 holds exactly."""
    scores = {'w': torch.rand(6, 6), 'b': torch.rand(5)}
    sizes = PlanSizes(scores, Rules())
    edges = search._edges(scores, sizes)
    for sweep in (edges, search._inside(scores, sizes, int(edges.thresholds[0]))):
        assert {values.dtype for values in sweep} == {torch.int64}


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
