"""From scores or masks to a plan: ranks, vectors, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import CDRAError, Plan, PlanError, make_plan, plan_from_masks, select
from cdra_mm.core.planning import selection
from tests.core.planning.problems import FACTORS, RULES, problems, rules
from tests.reference import planning as reference
from tests.reference.selection import top_k


@given(
    scores=problems(),
    data=st.data(),
    factor=FACTORS,
    min_rank=st.integers(0, 2),
    beta=st.sampled_from([1, 2.5, 5, 100]),
)
def test_make_plan_follows_the_steps(scores, data, factor, min_rank, beta):
    """Select, compact, rank: each as its oracle says."""
    total = sum(score.numel() for score in scores.values())
    count = data.draw(st.integers(1, total))
    rule, alpha = factor
    ours, theirs = rules(rule, min_rank, beta, {'cls_token': 3}, alpha)
    plan = make_plan(scores, num_sensitive=count, fingerprint='f', **theirs)
    masks = top_k(scores, count)
    sizes = reference.block_sizes(masks, rule, min_rank, alpha)
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


@given(scores=problems(), rule=RULES, chunk=st.integers(1, 7), budget_params=st.integers(1, 120))
def test_make_plan_does_not_depend_on_the_chunk(scores, rule, chunk, budget_params):
    def plans():
        yield make_plan(scores, gamma=0.4, rank_rule=rule)
        try:
            yield make_plan(scores, budget_params=budget_params, rank_rule=rule)
        except PlanError as error:
            yield str(error)

    whole = list(plans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, 'CHUNK', chunk)
        assert list(plans()) == whole


def test_make_plan_does_not_change_the_scores():
    scores = {'w': torch.rand(6, 6), 'b': torch.rand(8)}
    before = {name: score.clone() for name, score in scores.items()}
    make_plan(scores, budget_params=40)
    make_plan(scores, gamma=0.5)
    assert all(torch.equal(scores[name], before[name]) for name in scores)


def test_make_plan_shares_the_integers_of_its_indices():
    """Apart, the indices of a large model's plan take four times the memory."""
    masks = {name: torch.ones(2, 400, dtype=torch.bool) for name in 'ab'}
    one, other = plan_from_masks(masks, rank_rule='count').blocks
    assert all(i is j for i, j in zip(one.cols, other.cols, strict=True))


def test_make_plan_refuses_no_scores():
    for options in ({'gamma': 0.5}, {'num_sensitive': 1}, {'budget_params': 9}):
        for scores in ({}, {'w': torch.zeros(0)}):
            with pytest.raises(PlanError, match='no score'):
                make_plan(scores, **options)


def test_planning_leaves_the_number_of_threads_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        select(SCORES, gamma=0.5)
        plan_from_masks(select(SCORES, gamma=0.5))
        make_plan(SCORES, gamma=0.5)
        with pytest.raises(PlanError):
            make_plan(SCORES, budget_params=0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_make_plan_records_how_it_was_made():
    scores = {'w': torch.rand(6, 6)}
    rules = {'rank_rule': 'count', 'min_rank': 1, 'beta': 4}
    for budget in ({'gamma': 0.5}, {'num_sensitive': 9}, {'budget_params': 30}):
        plan = make_plan(scores, **budget, **rules, settings={'seed': 3})
        assert plan.method == 'cdra'
        assert dict(plan.settings) == {**budget, **rules, 'seed': 3}
        assert list(make_plan(scores, **budget, rank_alpha=1.0).settings) == [*rules, *budget]
        plan = make_plan(scores, **budget, **rules, rank_alpha=2.5)
        assert dict(plan.settings) == {**budget, **rules, 'rank_alpha': 2.5}
        assert Plan.from_json(plan.to_json()) == plan


def test_plan_from_masks_records_how_it_was_made():
    mask = torch.ones(6, 6, dtype=torch.bool)
    plan = plan_from_masks({'w': mask}, settings={'seed': 3}, fingerprint='f')
    defaults = {'rank_rule': 'eq7', 'min_rank': 0, 'beta': 5}  # of the paper, and SPT's
    assert dict(plan.settings) == {**defaults, 'seed': 3}
    assert plan.fingerprint == 'f'
    assert dict(make_plan({'w': torch.rand(6, 6)}, gamma=1.0).settings) == {
        **defaults,
        'gamma': 1.0,
    }


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
        ({}, '^gamma=None, num_sensitive=None, budget_params=None: give exactly one of them$'),
        ({'gamma': 0.1, 'budget_params': 9}, r'(?s)gamma.*budget_params'),
        ({'num_sensitive': 4, 'budget_params': 9}, r'(?s)num_sensitive.*budget_params'),
        ({'gamma': 2.0}, r'gamma.*2'),
        ({'num_sensitive': 1000}, r'num_sensitive.*1000'),
        ({'budget_params': 0}, r'budget_params.*0'),
        ({'budget_params': -5}, r'budget_params.*-5'),
        ({'gamma': 0.5, 'rank_rule': 'eq9'}, r'(?s)rank_rule.*eq9|rule.*eq9'),
        ({'gamma': 0.5, 'min_rank': -1}, r'min_rank.*-1'),
        ({'gamma': 0.5, 'rank_alpha': 0}, r'^rank_alpha=0: expected a number above 0$'),
        ({'gamma': 0.5, 'rank_alpha': True}, r'^rank_alpha=True: expected a finite number$'),
        (
            {'gamma': 0.5, 'rank_alpha': 2, 'rank_rule': 8},
            r'rank_alpha=2 with rank_rule=8: a fixed',
        ),
        ({'gamma': 0.5, 'beta': 0}, r'beta.*0'),
        ({'gamma': 0.5, 'also_train': {'cls_token': -3}}, r'(?s)cls_token.*-3'),
        ({'gamma': 0.5, 'also_train': {'cls_token': -1}}, r'(?s)cls_token.*-1'),
        ({'gamma': 0.5, 'also_train': {'cls_token': 2.5}}, r'(?s)cls_token.*2\.5'),
        ({'gamma': 0.5, 'also_train': {'cls_token': True}}, r'(?s)cls_token.*True'),
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
