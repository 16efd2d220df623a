"""The ablations of the paper's tables: other blocks, SPT's treatment, and budgets that hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdra_mm.core import Block, Plan, PlanError, make_plan, plan_from_masks
from cdra_mm.core.planning.ablations import Ablation
from cdra_mm.core.planning.rules import Rules
from cdra_mm.core.planning.treatment import treat_matrix
from tests.core.planning.problems import FACTORS, problems
from tests.reference import ablations as reference
from tests.reference.selection import top_k

CHANGES = st.fixed_dictionaries(
    {},
    optional={
        'case1': st.booleans(),
        'case2': st.booleans(),
        'alpha': st.sampled_from([1, 2.5, 10]),
        'lora_rank': st.sampled_from([1, 2, 8]),
        'size_ratio': st.sampled_from([1.0, 1.5, 2.5]),
        'quadrant': st.sampled_from(['10', '00', '11', '01']),
    },
)
SMALLER = st.sampled_from([0.25, 0.5, 0.75])


@settings(max_examples=150)
@given(
    scores=problems(),
    data=st.data(),
    factor=FACTORS,
    min_rank=st.integers(0, 2),
    changes=CHANGES,
    smaller=st.none() | SMALLER,
)
def test_ablations_treat_every_matrix_as_the_oracle_does(
    scores, data, factor, min_rank, changes, smaller
):
    if smaller:
        changes['size_ratio'] = smaller
    count = data.draw(st.integers(1, sum(score.numel() for score in scores.values())))
    rule, alpha = factor
    options = dict(rank_rule=rule, min_rank=min_rank, ablation=Ablation(**changes))
    options |= dict(rank_alpha=alpha)
    theirs = dict(rule=rule, rank_alpha=alpha, min_rank=min_rank, **changes)
    plan = make_plan(scores, num_sensitive=count, **options)
    masks = top_k(scores, count)
    blocks = {b.name: ('block', list(b.rows), list(b.cols), b.rank) for b in plan.blocks}
    entries = {s.name: ('entries', list(s.indices), [], 0) for s in plan.sparse}
    expected = {
        name: reference.treat(mask, **theirs)
        for name, mask in masks.items()
        if mask.dim() == 2 and mask.any()
    }
    frozen = {name for name, (kind, _, _, rank) in expected.items() if kind == 'block' and not rank}
    assert blocks | entries == {n: e for n, e in expected.items() if n not in frozen}
    assert {block.name for block in plan.dropped} == frozen
    assert all(b.num_sensitive == int(masks[b.name].sum()) for b in plan.dropped)
    for block in plan.blocks:
        inside = masks[block.name][list(block.rows)][:, list(block.cols)]
        assert block.num_sensitive == int(inside.sum())
    total = reference.size(masks, **theirs)[0]
    assert plan.num_trainable == total
    assert Plan.from_json(plan.to_json()) == plan


@settings(max_examples=150)
@given(
    scores=problems(),
    factor=FACTORS,
    min_rank=st.integers(0, 1),
    changes=CHANGES,
    budget=st.integers(0, 120),
    reserved=st.integers(0, 4),
)
def test_ablations_within_a_budget_equal_trying_every_count_where_sizes_do_not_fall(
    scores, factor, min_rank, changes, budget, reserved
):
    rule, alpha = factor
    options = dict(rank_rule=rule, min_rank=min_rank, ablation=Ablation(**changes))
    options |= dict(rank_alpha=alpha)
    theirs = dict(rule=rule, rank_alpha=alpha, min_rank=min_rank, **changes)
    options |= dict(budget_params=budget, also_train={'cls_token': reserved})
    sizes = reference.sizes(scores, **theirs)
    best = reference.within_budget(sizes, budget - reserved)
    try:
        found = make_plan(scores, **options).num_trainable - reserved
    except PlanError as error:
        assert 'budget_params' in str(error)
        found = None
    assert found is None or found in dict(sizes) and found <= budget - reserved
    if Rules(rule, min_rank, ablation=Ablation(**changes), rank_alpha=alpha).monotone:
        assert [size for size, _ in sizes] == sorted(size for size, _ in sizes)
        assert found == best


@settings(max_examples=100)
@given(
    scores=problems(),
    factor=FACTORS,
    changes=CHANGES,
    ratio=SMALLER,
    budget=st.integers(0, 120),
    reserved=st.integers(0, 4),
)
def test_smaller_blocks_never_exceed_a_budget_and_reach_it_where_sizes_grow(
    scores, factor, changes, ratio, budget, reserved
):
    changes['size_ratio'] = ratio
    rule, alpha = factor
    options = dict(budget_params=budget, rank_rule=rule, also_train={'cls_token': reserved})
    options |= dict(rank_alpha=alpha)
    sizes = reference.sizes(scores, rule=rule, rank_alpha=alpha, **changes)
    best = reference.within_budget(sizes, budget - reserved)
    try:
        found = make_plan(scores, ablation=Ablation(**changes), **options).num_trainable - reserved
    except PlanError:
        found = None
    assert found is None or found in dict(sizes) and found <= budget - reserved
    if sizes == sorted(sizes):
        assert found == best


@pytest.mark.parametrize(('alpha', 'rank_alpha'), [(1, 20), (10, 10)])
def test_sizes_can_fall_where_a_factor_is_above_that_of_the_lora_that_follows(alpha, rank_alpha):
    """The block that case 2 ends is larger then; the search must not take sizes to grow."""
    score = torch.arange(400, 0, -1.0).view(20, 20)
    rule = dict(rank_alpha=rank_alpha)
    changes = dict(case2=False, alpha=alpha, lora_rank=1)
    sizes = [size for size, _ in reference.sizes({'w': score}, **rule, **changes)]
    assert (sizes == sorted(sizes)) == (rank_alpha <= alpha)
    assert Rules(ablation=Ablation(**changes), **rule).monotone == (rank_alpha <= alpha)


def test_smaller_blocks_fill_a_budget_among_many_scores():
    """Halved sides of a structured matrix: most of the budget is used."""
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for i in range(4):
        sides = torch.rand(128, 1, generator=generator), torch.rand(1, 96, generator=generator)
        noise = torch.rand(128, 96, generator=generator)
        scores[f'b{i}.weight'] = (sides[0] * sides[1] * noise) ** 4
        scores[f'b{i}.bias'] = torch.rand(128, generator=generator) ** 8
    for rule in ('eq7', 'count'):
        for budget in (1_500, 2_800):
            options = dict(budget_params=budget, rank_rule=rule)
            plan = make_plan(scores, ablation=Ablation(size_ratio=0.5), **options)
            assert 0.9 * budget < plan.num_trainable <= budget
            assert len({len(block.rows) for block in plan.blocks}) > 1


def test_smaller_blocks_within_a_budget_are_found_among_scores_of_one_magnitude():
    """All in one bucket of the grid: only the bisection can part them."""
    score = 1 + torch.arange(36, 0, -1.0).view(6, 6) / 2**12
    sizes = reference.sizes({'w': score}, rule=1, size_ratio=0.5)
    options = dict(rank_rule=1, ablation=Ablation(size_ratio=0.5))
    for budget in range(2, 7):
        plan = make_plan({'w': score}, budget_params=budget, **options)
        assert plan.num_trainable == reference.within_budget(sizes, budget)


def test_smaller_blocks_within_a_budget_may_stand_beside_a_sparse_matrix():
    """The best plan adapts one matrix each way."""
    generator = torch.Generator().manual_seed(0)
    scores = {
        'w': torch.rand(6, 6, generator=generator),
        'v': torch.rand(6, 6, generator=generator) * 0.3,
    }
    ablation = Ablation(size_ratio=0.5, case1=False, alpha=2, lora_rank=1)
    plan = make_plan(scores, budget_params=10, rank_rule=1, ablation=ablation)
    assert (plan.num_trainable, len(plan.blocks), len(plan.sparse)) == (10, 1, 1)


def test_a_smaller_block_that_misses_every_selected_entry_stays_frozen():
    mask = torch.tensor([[False, True], [True, False]])
    plan = plan_from_masks({'w': mask}, rank_rule=1, min_rank=1, ablation=Ablation(size_ratio=0.5))
    assert not plan.blocks and [block.num_sensitive for block in plan.dropped] == [2]


def mask_of(rows, cols, shape=(6, 8)):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[torch.tensor(rows)[:, None], torch.tensor(cols)] = True
    return mask


def test_larger_blocks_take_the_next_rows_and_columns_by_index():
    mask = mask_of([2, 4], [1, 5])
    mask[4, 7] = True
    (block,) = plan_from_masks({'w': mask}, rank_rule=1, ablation=Ablation(size_ratio=1.5)).blocks
    assert block.rows == (4, 2, 0) and block.cols == (1, 5, 7, 0, 2)  # 1.5 * 3 = 4.5: up
    whole = plan_from_masks({'w': mask}, rank_rule=1, ablation=Ablation(size_ratio=9)).blocks[0]
    assert (len(whole.rows), len(whole.cols)) == (6, 8)


def test_quadrants_tile_the_matrix_and_share_the_rank():
    mask = mask_of([0, 3, 5], [1, 2, 6])
    tiles = torch.zeros(6, 8, dtype=torch.int64)
    for quadrant in ('10', '00', '11', '01'):
        plan = plan_from_masks({'w': mask}, rank_rule='count', ablation=Ablation(quadrant=quadrant))
        (block,) = plan.blocks
        assert block.rank == 1
        assert block.num_sensitive == (9 if quadrant == '10' else 0)
        tiles[torch.tensor(block.rows)[:, None], torch.tensor(block.cols)] += 1
    assert bool((tiles == 1).all())


def test_a_quadrant_that_is_empty_leaves_its_matrix_frozen():
    mask = torch.ones(4, 4, dtype=torch.bool)
    plan = plan_from_masks({'w': mask}, rank_rule=2, ablation=Ablation(quadrant='00'))
    assert not plan.blocks and plan.num_trainable == 0
    (lost,) = plan.dropped
    assert lost.num_sensitive == 16 and len(lost.rows) == 4
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(('number', 'case'), [(23, 1), (24, 2)])
def test_cases_part_where_selected_entries_reach_their_share_of_lora(number, case):
    """LoRA of rank 4 on 20 x 40 has 240 parameters: a tenth of them is case 2."""
    mask = torch.zeros(800, dtype=torch.bool)
    mask[:number] = True
    options = dict(lora_rank=4, alpha=10)
    none = Ablation(case1=False, case2=False, **options)
    plan = plan_from_masks({'w': mask.view(20, 40)}, ablation=none)
    assert plan.num_trainable == (number if case == 1 else 240)
    assert (len(plan.sparse), len(plan.blocks)) == ((1, 0) if case == 1 else (0, 1))
    for name, fallen in (('case1', case == 1), ('case2', case == 2)):
        rules = Rules('count', ablation=Ablation(**{name: False}, **options))
        record = treat_matrix(rules, 'w', mask.view(20, 40), number, {})
        is_compact = isinstance(record, Block) and len(record.rows) < 20
        assert is_compact != fallen


def test_plans_record_only_what_departs_from_the_method():
    mask = {'w': torch.ones(4, 4, dtype=torch.bool)}
    assert set(plan_from_masks(mask).settings) == {'rank_rule', 'min_rank', 'beta'}
    changed = plan_from_masks(mask, ablation=Ablation(case1=False, size_ratio=0.5)).settings
    assert {k: changed[k] for k in changed.keys() - {'rank_rule', 'min_rank', 'beta'}} == {
        'case1': False,
        'size_ratio': 0.5,
    }


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(case1='no'), "case1='no': expected True or False"),
        (dict(case2=0), 'case2=0: expected True or False'),
        (dict(alpha=0.5), r'alpha=0\.5: expected a number of at least 1'),
        (dict(lora_rank=0), 'lora_rank=0: expected an integer'),
        (dict(lora_rank=2.0), r'lora_rank=2\.0: expected an integer'),
        (dict(size_ratio=0), 'size_ratio=0: expected a number above 0'),
        (dict(size_ratio=float('inf')), 'size_ratio=inf'),
        (dict(size_ratio=float('nan')), 'size_ratio=nan'),
        (dict(quadrant='02'), "quadrant='02': expected one of '10', '00', '11', '01'"),
        (dict(quadrant=10), 'quadrant=10: expected one of'),
    ],
)
def test_ablations_refuse_what_is_out_of_range(wrong, message):
    with pytest.raises(PlanError, match=message):
        Ablation(**wrong)
