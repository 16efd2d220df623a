"""SPT: who is trained how, against slow references."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import ConfigError, Plan, PlanError, apply_plan, count_parameters, find_targets
from cdra_mm.methods import Request, make_method
from tests.models import TinySwin, TinyViT
from tests.reference.planning import thresholds
from tests.reference.selection import top_k

MODELS = {
    'fused': TinyViT,
    'mha': lambda: TinyViT(attention='mha_sequence'),
    'swin': TinySwin,
    'gated': lambda: TinyViT('swiglu'),
}
CALLED = ('fused', 'swin', 'gated')  # every product by a layer's own forward
FORMULAS = {
    'spt_lora': lambda o, i, r: r * (o + i),
    'spt_adapter': lambda o, i, r: (o * r + r) + (r * o + o),
}


def scores_of(backbone, seed=0):
    """Skewed, as real ones are: some matrices hold many of the largest."""
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, target in find_targets(backbone).items():
        spread = float(torch.rand((), generator=generator)) * 0.7
        scores[name] = torch.rand(target.shape, generator=generator) * 10**spread
    return scores


def decide(backbone, kind='spt_lora', scores=None, also_train=None, **settings):
    method = make_method({'type': kind, 'rank': 2, 'dropout': 0.0, **settings})
    scores = scores_of(backbone) if scores is None else scores
    return method.plan(Request(backbone, scores, also_train=also_train or {}))


def expected_sizes(masks, kind, rank, alpha, beta):
    """Name -> ('module' | 'entries' | 'whole', parameters), by SPT's rules, one by one."""
    sizes = {}
    for name, mask in masks.items():
        count = sum(mask.flatten().tolist())
        if not count:
            continue
        if mask.dim() == 1:
            whole = count >= len(mask) / beta
            sizes[name] = ('whole', len(mask)) if whole else ('entries', count)
        else:
            module = FORMULAS[kind](*mask.shape, rank)
            sizes[name] = ('module', module) if count >= module / alpha else ('entries', count)
    return sizes


def planned_sizes(plan, rank):
    """The same of a plan."""
    sizes = {block.name: ('module', block.num_params) for block in plan.blocks}
    sizes |= {matrix.name: ('entries', matrix.num_params) for matrix in plan.sparse}
    for vector in plan.vectors:
        way = 'whole' if vector.indices is None else 'entries'
        sizes[vector.name] = (way, vector.num_params)
    for part in plan.parts:
        parameter = part.name.removesuffix('bottleneck') + 'weight'
        starts = list(map(int, part.sizes['starts'].split()))
        width = part.sizes['width']
        each = part.num_params // len(starts)
        if parameter.endswith(('qkv.weight', 'w12.weight')):
            letters = 'qkv' if parameter.endswith('qkv.weight') else ('w1', 'w2')
            names = [f'{parameter}:{letters[start // width]}' for start in starts]
        else:
            names = [parameter]
        sizes |= dict.fromkeys(names, ('module', each))
    return sizes


@pytest.mark.parametrize(
    ('kind', 'model'),
    [(k, m) for k in FORMULAS for m in MODELS if (k, m) != ('spt_adapter', 'mha')],
)
@pytest.mark.parametrize('count', [1, 60, 400])
def test_spt_decides_as_its_rules_say(kind, model, count):
    backbone = MODELS[model]()
    scores = scores_of(backbone)
    plan = decide(backbone, kind, scores, num_sensitive=count, alpha=3, beta=2)
    sizes = expected_sizes(top_k(scores, count), kind, 2, 3, 2)
    assert planned_sizes(plan, 2) == sizes
    assert plan.num_trainable == sum(size for _, size in sizes.values())
    assert plan.num_sensitive == count
    assert plan.num_competing == sum(score.numel() for score in scores.values())
    assert Plan.from_json(plan.to_json()) == plan


def test_spt_trains_the_selected_entries_alone():
    backbone = TinyViT()
    scores = scores_of(backbone)
    masks = top_k(scores, 40)
    plan = decide(backbone, scores=scores, num_sensitive=40, alpha=1, beta=1)
    assert len(plan.sparse) > 1 and not plan.blocks
    for matrix in plan.sparse:
        assert list(matrix.indices) == masks[matrix.name].flatten().nonzero().flatten().tolist()
    for vector in plan.vectors:
        assert list(vector.indices) == masks[vector.name].nonzero().flatten().tolist()


@st.composite
def problems(draw):
    """A few targets with many equal scores, some of them zero, some next to each other."""
    values = st.sampled_from([0.0, 0.5, 1.0, 1.0 + 2**-23, 1.0 + 2**-22, 1.5, 2.0, 700.0])
    scores = {}
    for i in range(draw(st.integers(1, 3))):
        shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)) | st.tuples(st.integers(1, 6)))
        numbers = [draw(values) for _ in range(math.prod(shape))]
        scores[str(i)] = torch.tensor(numbers).reshape(shape)
    return scores


@given(
    scores=problems(),
    budget=st.integers(0, 60),
    alpha=st.sampled_from([1, 2.5, 10]),
    reserved=st.integers(0, 3),
    kind=st.sampled_from(sorted(FORMULAS)),
)
def test_spt_within_a_budget_equals_trying_every_threshold(scores, budget, alpha, reserved, kind):
    from cdra_mm.core.planning.budget import threshold_for_budget
    from cdra_mm.core.planning.selection import masks_above

    method = make_method({'type': kind, 'rank': 1, 'alpha': alpha, 'beta': 2})

    def size(masks):
        return sum(n for _, n in expected_sizes(masks, kind, 1, alpha, 2).values()) + reserved

    def size_at(name, _, number):
        return method.num_params(tuple(scores[name].shape), number), (number > 0).long()

    sizes = [size(top_k(scores, count)) for count in thresholds(scores)]
    best = max((n for n in sizes if n <= budget), default=None)
    if best is None:
        with pytest.raises(PlanError, match=rf'smallest plan with an adapter trains {min(sizes)} '):
            threshold_for_budget(scores, budget, size_at, reserved=reserved)
    else:
        threshold = threshold_for_budget(scores, budget, size_at, reserved=reserved)
        masks = {name: mask.clone() for name, mask in masks_above(scores, threshold)}
        assert size(masks) == best


@pytest.mark.parametrize('kind', FORMULAS)
def test_spt_budget_counts_everything(kind):
    backbone = TinyViT()
    also = {'cls_token': 8}
    total = sum(p.numel() for p in backbone.parameters())
    by_count = decide(backbone, kind, also_train=also, budget_params=300)
    by_percent = decide(backbone, kind, also_train=also, budget_percent=100 * 300.5 / total)
    assert by_count.num_trainable == by_percent.num_trainable
    assert 200 < by_count.num_trainable <= 300 and by_count.also_train == also
    again = decide(backbone, kind, also_train=also, num_sensitive=by_count.num_sensitive)
    assert planned_sizes(again, 2) == planned_sizes(by_count, 2)


@pytest.mark.parametrize('budget', [dict(num_sensitive=900), dict(budget_params=1200)])
def test_spt_lora_equals_cdra_without_both_of_its_cases(budget):
    """Table 5's first row, by other code."""
    backbone = TinyViT(dim=16, hidden=32)
    ours = decide(backbone, rank=2, alpha=2, **budget)
    ablation = dict(type='cdra', case1=False, case2=False, lora_rank=2, alpha=2, **budget)
    theirs = make_method(ablation).plan(Request(backbone, scores_of(backbone)))
    assert ours.blocks and ours.sparse and ours.vectors
    # More entries selected in a matrix that has its module anyway change nothing.
    assert uncounted(ours.blocks) == uncounted(theirs.blocks) and ours.sparse == theirs.sparse
    assert uncounted(ours.vectors) == uncounted(theirs.vectors)


def uncounted(records):
    return [replace(record, num_sensitive=0) for record in records]


def test_spt_adapter_refuses_weights_that_no_layer_uses():
    base = TinyViT(attention='mha')
    with pytest.raises(PlanError, match='MultiheadAttention reads this weight.*use lora or'):
        decide(base, 'spt_adapter', num_sensitive=900)
    adapted = apply_plan(base, decide(base, 'spt_lora', num_sensitive=900))
    assert count_parameters(adapted)[0] > 0


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        (dict(gamma=0.1, budget_params=5), ConfigError, 'gamma=0.1, budget_params=5: give only'),
        (dict(gamma=True), ConfigError, 'gamma=True: expected a finite number'),
        (dict(num_sensitive=0), ConfigError, 'num_sensitive=0: expected a count'),
        (dict(budget_percent='5'), ConfigError, "budget_percent='5': expected a finite number"),
        (dict(alpha=0.5), ConfigError, r'alpha=0\.5: expected a number of at least 1'),
        (dict(beta=0), ConfigError, 'beta=0: expected a number of at least 1'),
        (dict(rank=1.5), ConfigError, r'rank=1\.5: expected an integer'),
        (dict(dropout=-1), ConfigError, 'dropout=-1: expected a probability'),
        (dict(budget_params=1), PlanError, 'is too small .* adapter trains 9 parameters'),
        (dict(rank=20, num_sensitive=900), PlanError, 'a rank of 20 is no low rank'),
    ],
)
def test_spt_refuses_settings_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        decide(TinyViT(), also_train={'cls_token': 8}, **settings)


def test_spt_without_a_budget_takes_half_a_percent_and_keeps_its_settings():
    assert make_method({'type': 'spt_adapter'}).budget_percent == 0.5
    plan = decide(TinyViT(), gamma=0.1, alpha=4)
    assert plan.settings.items() >= {'gamma': 0.1, 'alpha': 4, 'rank': 2}.items()
