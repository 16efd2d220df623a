"""NOAH: modules of the other rows, a search within a limit."""

from __future__ import annotations

import copy
import re

import pytest
import timm
import torch
from torch import nn

from cdra_mm.core import ConfigError, Plan, PlanError, apply_plan, merge_adapters
from cdra_mm.core.adapters.apply import check_fits
from cdra_mm.methods import METHODS, Request, make_method
from cdra_mm.methods.evolution import Choice
from tests.core.problems import move
from tests.methods.adapted import (
    assert_trains_exactly,
    assert_travels,
    inputs,
    plan_for,
    timm_vit,
    tiny,
)
from tests.models import TinySwin
from tests.reference.evolution import best_subnet

WIDTH = 8  # of the tiny models
SEARCH = dict(population=12, num_parents=4, num_mutations=4, num_crossovers=4, generations=2)
SIZES = dict(prompt_dims=[1, 3], lora_dims=[1, 2], adapter_dims=[2, 4], depths=[1, 3])
SMALL = dict(type='noah', **SIZES, **SEARCH)
LARGEST = dict(SMALL, prompt_dims=[3], lora_dims=[2], adapter_dims=[4], depths=[3])
# Of prompts, LoRA on q and v, and bottlenecks, by hand.
COUNTS = (
    lambda p: p * WIDTH,
    lambda r: 2 * r * 2 * WIDTH,
    lambda h: 2 * h * WIDTH + h + WIDTH,
)


class Run:
    """A run whose samples like what a function of the plan says."""

    seed = 5

    def __init__(self, worth=lambda plan: 0.0):
        self.worth, self.largest, self.drawn, self.asked, self.given = worth, None, [], [], {}

    def train(self, largest, draw, **given):
        self.largest, self.given = largest, given
        self.drawn = [draw() for _ in range(30)]

    def fitness(self, plan):
        self.asked.append(plan)
        return self.worth(plan)


def planned(model, config, run=None, **options):
    return plan_for(model, config, trials=run or Run(), **options)


def dims_of(plan):
    """The sizes of a plan's modules: for each kind those of the first blocks."""
    ranks = [block.rank for block in plan.blocks]
    assert ranks[::2] == ranks[1::2]  # q and v
    parts = {
        kind: tuple(part.sizes[size] for part in plan.parts if part.kind == kind)
        for kind, size in (('prompts', 'num_prompts'), ('bottleneck', 'bottleneck'))
    }
    return parts['prompts'], tuple(ranks[::2]), parts['bottleneck']


def count(subnet):
    return sum(of(dim) for of, dims in zip(COUNTS, subnet, strict=True) for dim in dims)


def test_noah_finds_the_best_subnet_within_the_limit():
    """As trying all of them does: (2 + 2^3)^3 subnets, each with a worth of its own."""
    model, limit = timm_vit(num_classes=0), 400
    worth = {}

    def fitness(subnet):
        generator = torch.Generator().manual_seed(hash(subnet) % 2**31)
        return worth.setdefault(subnet, float(torch.rand((), generator=generator)))

    run = Run(lambda plan: fitness(dims_of(plan)))
    patient = dict(SMALL, budget_params=limit, population=60, num_mutations=60, num_crossovers=60)
    plan = planned(model, dict(patient, generations=40, mutation_prob=0.5), run)
    space = [Choice(tuple(SMALL[name]), (1, 3)) for name in SMALL if name.endswith('_dims')]
    assert dims_of(plan) == best_subnet(space, fitness, count, limit)
    assert plan.num_trainable == count(dims_of(plan)) <= limit
    assert all(asked.num_trainable <= limit for asked in run.asked)
    assert plan.settings['fitness'] == max(map(run.worth, run.asked))
    assert plan.settings['tried'] == len(run.asked) == len({dims_of(p) for p in run.asked})


def test_noah_trains_the_supernet_as_random_subnets_of_any_size():
    run, options = Run(), dict(supernet_epochs=7, supernet_lr_mult=0.25, held_out=0.1)
    planned(timm_vit(num_classes=0), dict(SMALL, budget_params=150, **options), run)
    assert run.given == dict(epochs=7, iters=None, lr_mult=0.25, held_out=0.1, max_held_out=200)
    assert dims_of(run.largest) == ((3,) * 3, (2,) * 3, (4,) * 3)
    sizes = {plan.num_trainable for plan in run.drawn}
    assert max(sizes) > 150 and len(sizes) > 10  # the limit is for the search alone
    assert all(len(dims) in (1, 3) for plan in run.drawn for dims in dims_of(plan))


def test_noah_is_decided_by_the_seed_of_the_run():
    first, again, other = Run(), Run(), Run()
    other.seed = 6
    for run in (first, again, other):
        planned(timm_vit(num_classes=0), SMALL, run)
    assert first.asked == again.asked != other.asked
    assert first.drawn == again.drawn != other.drawn


def test_noah_plan_trains_what_it_declares_and_travels(tmp_path):
    base = timm_vit(num_classes=0)
    plan = planned(base, dict(SMALL, dropout=0.0), Run(lambda plan: plan.num_trainable))
    assert Plan.from_json(plan.to_json()) == plan
    model = apply_plan(copy.deepcopy(base), plan, seed=0)
    move(model)
    assert_trains_exactly(base, model, plan, inputs())
    assert_travels(base, model, plan, inputs(), tmp_path)
    with pytest.raises(PlanError, match='do not merge'):
        merge_adapters(model)


def test_noah_modules_are_those_of_the_other_rows():
    """The same dims everywhere: VPT-Deep, LoRA and Adapter on one backbone."""
    model = timm_vit(num_classes=0)
    plan = planned(model, dict(LARGEST, dropout=0.2))
    others = (
        dict(type='vpt_deep', num_prompts=3, dropout=0.2),
        dict(type='adapter', bottleneck=4),
        dict(type='lora', rank=2, alpha=2, dropout=0.2),
    )
    prompts, bottlenecks, lora = (plan_for(model, config) for config in others)
    assert plan.blocks == lora.blocks
    assert plan.parts == (*prompts.parts, *bottlenecks.parts)
    assert {block.scale for block in plan.blocks} == {1.0}


def test_noah_of_the_paper_on_vit_base():
    """The largest supernet and the limit, counted on ViT-B/16."""
    with torch.device('meta'):
        model = timm.create_model('vit_base_patch16_224', num_classes=0)
    run = Run(lambda plan: plan.num_trainable)
    plan = planned(model, dict(type='noah', generations=1), run)
    bottleneck = 2 * 100 * 768 + 100 + 768
    assert run.largest.num_trainable == 12 * (100 * 768 + 4 * 100 * 768 + bottleneck)
    assert 600_000 < plan.num_trainable <= 640_000 == plan.settings['limit']
    for dims in map(dims_of, [plan, *run.drawn]):
        assert all(len(kind) in (3, 6, 9, 12) for kind in dims)
        assert {dim for kind in dims for dim in kind} <= {5, 10, 50, 100}
    check_fits(model, plan)


@pytest.mark.parametrize(('depth', 'expected'), [(3, {1, 2, 3}), (4, {1, 2, 3, 4}), (1, {1})])
def test_noah_depths_are_quarters_of_the_blocks(depth, expected):
    run, config = Run(), {key: value for key, value in SMALL.items() if key != 'depths'}
    planned(timm_vit(num_classes=0, depth=depth), config, run)
    assert {len(dims) for plan in run.drawn for dims in dims_of(plan)} == expected


def test_noah_percentage_is_of_the_backbone():
    model = timm_vit(num_classes=0)
    total = sum(p.numel() for p in model.parameters())
    plan = planned(model, dict(SMALL, budget_percent=10.0), Run(lambda plan: plan.num_trainable))
    assert plan.settings['limit'] == int(total / 10) >= plan.num_trainable > total / 12


def test_noah_leaves_out_modules_without_sizes():
    """Prompts cannot stand in Swin's windows; the others can."""
    with pytest.raises(PlanError, match=r'know the positions .*with prompt_dims=\[\]'):
        planned(TinySwin(), SMALL)
    plan = planned(TinySwin(), dict(SMALL, prompt_dims=[]))
    assert {part.kind for part in plan.parts} == {'bottleneck'} and plan.blocks
    without = planned(tiny(depth=3), dict(SMALL, lora_dims=[], adapter_dims=[]))
    assert not without.blocks and {part.kind for part in without.parts} == {'prompts'}


def test_noah_names_the_smallest_subnet_where_none_is_within_the_limit():
    least = count(((1,), (1,), (2,)))
    run = Run()
    with pytest.raises(PlanError, match=f'limit is {least - 1} .* smallest subnet trains {least}:'):
        planned(timm_vit(num_classes=0), dict(SMALL, budget_params=least - 1), run)
    assert run.largest is None  # before any training
    plan = planned(timm_vit(num_classes=0), dict(SMALL, budget_params=least), run)
    assert plan.num_trainable == least


def test_noah_refuses_what_it_cannot_plan():
    with pytest.raises(PlanError, match=r'depths=\[4\]: the backbone has 3 transformer blocks'):
        planned(tiny(depth=3), dict(SMALL, depths=[4]))
    with pytest.raises(PlanError, match='has no transformer blocks'):
        planned(nn.Conv2d(3, 8, 4), SMALL)
    with pytest.raises(PlanError, match=r'rank of 100 is no low rank.*with lora_dims=\[\]'):
        planned(tiny(depth=3), dict(SMALL, lora_dims=[100]))
    with pytest.raises(PlanError, match='needs a run with training data'):
        make_method(SMALL).plan(Request(tiny(depth=3)))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(prompt_dims=[], lora_dims=[], adapter_dims=[]), 'are all empty: there is nothing'),
        (dict(lora_dims=[0]), 'lora_dims=[0]: expected a list of counts'),
        (dict(lora_dims=['a']), "lora_dims=['a']: expected a list of integers"),
        (dict(lora_dims=5), 'lora_dims=5: expected a list of integers'),
        (dict(depths=[]), 'depths=[]: expected at least one'),
        (dict(depths=[0, 3]), 'depths=[0, 3]: expected a list of counts'),
        (dict(dropout=1.0), 'dropout=1.0: expected a probability'),
        (dict(held_out=0.0), 'held_out=0.0: expected a share'),
        (dict(held_out=1), 'held_out=1: expected a share'),
        (dict(population=0), 'population=0: expected a count of at least 1'),
        (dict(generations=-1), 'generations=-1: expected a count of at least 0'),
        (dict(supernet_iters=0), 'supernet_iters=0: expected a count'),
        (dict(mutation_prob=1.5), 'mutation_prob=1.5: expected a probability in [0, 1]'),
        (dict(supernet_lr_mult=-1), 'supernet_lr_mult=-1: expected a number of at least 0'),
        (dict(budget_percent=101), 'budget_percent=101: expected a percentage in [0, 100]'),
        (dict(budget_percent=1, budget_params=1), 'budget_percent=1: give only one'),
        (dict(prompt_dim=[1]), "(did you mean 'prompt_dims'?)"),
    ],
)
def test_noah_refuses_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_method({'type': 'noah', **settings})


def test_noah_settings_are_lists_as_checkpoints_hold_them():
    method = make_method(dict(SMALL, prompt_dims=(3, 1, 3), depths=(3, 1)))
    assert (method.prompt_dims, method.depths) == ([1, 3], [1, 3])
    assert METHODS['noah']().prompt_dims == [5, 10, 50, 100]
