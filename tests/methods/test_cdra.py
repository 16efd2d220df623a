"""CDRA's ablations from a config: what they train, that it works, and that budgets hold."""

from __future__ import annotations

import argparse
import copy

import pytest
import torch
from mmengine.config import DictAction

from cdra_mm.core import (
    ConfigError,
    apply_plan,
    find_targets,
    load_adapter,
    merge_adapters,
    save_adapter,
)
from cdra_mm.methods import Request, make_method
from tests.core.problems import move
from tests.models import MODELS, TinyViT, images
from tests.reference.layers import dense_model

ABLATIONS = {
    'table 4': dict(rank_rule=2),
    'table 5, case 1': dict(case2=False, rank_rule='count', lora_rank=1, alpha=2),
    'table 5, case 2': dict(case1=False, rank_rule='count', lora_rank=1, alpha=2),
    'table 5, neither': dict(case1=False, case2=False, lora_rank=1, alpha=2),
    'table 6, larger': dict(size_ratio=1.5, rank_rule='count'),
    'table 6, smaller': dict(size_ratio=0.5, rank_rule='count'),
    'table 7, 00': dict(quadrant='00', rank_rule='count'),
    'table 7, 11': dict(quadrant='11', rank_rule='count'),
    'table 7, 01': dict(quadrant='01', rank_rule='count'),
    'min_rank': dict(min_rank=1),
    'rank_alpha': dict(rank_alpha=20),
    'matrices': dict(compete='matrices', rank_rule='count'),
    'roles': dict(compete=['proj', 'fc1', 'bias'], rank_rule='count'),
}


def structured_scores(model):
    """Some rows and columns matter more."""
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for name, target in find_targets(model).items():
        score = torch.rand(target.shape, generator=generator)
        for dim in range(score.dim()):
            sides = [1] * score.dim()
            sides[dim] = target.shape[dim]
            score = score * torch.rand(sides, generator=generator) ** 2
        scores[name] = score
    return scores


def decide(model, **settings):
    request = Request(model, structured_scores(model))
    return make_method({'type': 'cdra', **settings}).plan(request)


@pytest.mark.parametrize('kind', ['fused', 'mha'])
@pytest.mark.parametrize('name', ABLATIONS)
def test_cdra_ablation_trains_within_its_budget_and_merges(name, kind, tmp_path):
    torch.manual_seed(0)
    base = MODELS[kind]().double().eval()
    plan = decide(base, budget_params=300, **ABLATIONS[name])
    assert 0 < plan.num_trainable <= 300
    assert plan.blocks or plan.sparse
    assert plan.settings.items() >= ABLATIONS[name].items()
    model = apply_plan(copy.deepcopy(base), plan)
    x = images(3, torch.float64)[0]
    torch.testing.assert_close(model(x), base(x))  # a fresh adapter changes nothing
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == plan.num_trainable
    move(model)
    before = model(x)
    torch.testing.assert_close(dense_model(base, model.state_dict())(x), before)
    save_adapter(model, tmp_path / 'a.safetensors')
    again = copy.deepcopy(base)
    assert load_adapter(again, tmp_path / 'a.safetensors') == plan
    assert torch.equal(again(x), before)
    merge_adapters(model)
    torch.testing.assert_close(model(x), before)


def test_cdra_ablations_differ_from_the_method_and_from_each_other():
    model = TinyViT()
    plans = [decide(model, budget_params=300, rank_rule='count')]
    plans += [decide(model, budget_params=300, **ABLATIONS[name]) for name in ABLATIONS]
    trained = {(p.blocks, p.sparse, p.vectors) for p in plans}
    assert len(trained) == len(plans)


def test_cdra_without_ablations_records_what_it_always_recorded():
    settings = decide(TinyViT(), budget_params=300, rank_rule='count').settings
    budgets = {'gamma', 'num_sensitive', 'budget_params', 'budget_percent'}
    assert set(settings) == budgets | {'rank_rule', 'min_rank', 'beta'}
    assert 'rank_alpha' not in make_method({'type': 'cdra', 'rank_alpha': 1.0}).recorded
    assert make_method({'type': 'cdra', 'rank_alpha': 0.5}).recorded['rank_alpha'] == 0.5


@pytest.mark.parametrize(
    ('compete', 'roles'),
    [
        ('all', {'q', 'k', 'v', 'proj', 'fc1', 'fc2', 'norm', 'bias', 'scale'}),
        ('matrices', {'q', 'k', 'v', 'proj', 'fc1', 'fc2'}),
        ('vectors', {'norm', 'bias', 'scale'}),
        ('fc2', {'fc2'}),
        (('q', 'v', 'norm'), {'q', 'v', 'norm'}),
    ],
)
def test_cdra_compete_decides_what_competes(compete, roles):
    model = TinyViT()
    targets = find_targets(model)
    plan = decide(model, gamma=1.0, rank_rule='count', compete=compete)
    records = (*plan.blocks, *plan.vectors, *plan.dropped)
    assert {targets[record.name].role for record in records} == roles
    assert plan.num_competing == sum(t.numel for t in targets.values() if t.role in roles)


def test_cdra_reads_its_ablations_from_a_command_line():
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction)
    words = ['quadrant=00', 'case1=False', 'size_ratio=0.5', 'compete=q,v', 'rank_rule=8']
    options = parser.parse_args(['--options', *words]).options
    method = make_method({'type': 'cdra', **options})
    assert (method.quadrant, method.case1, method.size_ratio) == ('00', False, 0.5)
    assert method.compete == ['q', 'v'] and method.rank_rule == 8
    assert make_method({'type': 'cdra', 'quadrant': 1}).quadrant == '01'


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(case1='off'), "case1='off': expected True or False"),
        (dict(quadrant=2), "quadrant='02': expected one of"),
        (dict(size_ratio=-1), 'size_ratio=-1: expected a number above 0'),
        (dict(size_ration=1.5), r"no setting 'size_ration' \(did you mean 'size_ratio'\?\)"),
        (dict(compete=[]), r'compete=\[\]: expected'),
        (dict(compete=3), 'compete=3: expected text or a list of texts'),
        (dict(alpha=0), 'alpha=0: expected a number of at least 1'),
        (dict(rank_alpha=0), '^rank_alpha=0: expected a number above 0'),
        (dict(rank_alpha='a lot'), "^rank_alpha='a lot': expected a finite number"),
        (dict(rank_alpha=float('inf')), '^rank_alpha=inf: expected a finite number'),
        (dict(rank_alpha=2, rank_rule=8), '^rank_alpha=2 with rank_rule=8: a fixed rank'),
        (dict(lora_rank=0), 'lora_rank=0: expected an integer'),
    ],
)
def test_cdra_refuses_wrong_ablations_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_method({'type': 'cdra', **settings})


def test_cdra_refuses_a_role_that_the_backbone_does_not_have():
    with pytest.raises(ConfigError, match=r"'w1' is no role of TinyViT: expected some of .*fc1"):
        decide(TinyViT(), gamma=0.5, compete=['q', 'w1'])
