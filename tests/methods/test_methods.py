"""Methods decide what is trained; wrong settings are refused by name before any work."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core import ConfigError, apply_plan, count_parameters, find_targets
from cdra_mm.methods import METHODS, Request, make_method
from tests.models import TinyViT


def decide(config, backbone, **options):
    generator = torch.Generator().manual_seed(0)
    scores = {
        name: torch.rand(target.shape, generator=generator)
        for name, target in find_targets(backbone).items()
    }
    method = make_method(config)
    given = scores if method.needs_scores else {}
    return method.plan(Request(backbone, given, settings={'seed': 0}, **options))


def test_every_method_is_found_under_its_own_name():
    assert all(cls.name == name for name, cls in METHODS.items())
    assert {'cdra', 'linear', 'full'} <= set(METHODS)


def test_linear_trains_nothing_of_the_backbone():
    backbone = TinyViT()
    plan = decide({'type': 'linear'}, backbone)
    apply_plan(backbone, plan)
    assert plan.method == 'linear' and plan.num_trainable == 0
    assert count_parameters(backbone)[0] == 0


def test_full_leaves_the_backbone_as_it_is():
    assert decide({'type': 'full'}, TinyViT()) is None


@pytest.mark.parametrize(
    'settings', [dict(gamma=0.2), dict(num_sensitive=500), dict(budget_params=400), {}]
)
def test_cdra_keeps_its_settings_in_the_plan(settings):
    backbone = TinyViT()
    settings = dict(settings, rank_rule='count')
    also = {'cls_token': backbone.cls_token.numel()}
    if settings == dict(rank_rule='count'):
        settings['budget_percent'] = 20.0  # the default 0.5 % is less than a tiny model's rank 1
    plan = decide({'type': 'cdra', **settings}, backbone, also_train=also)
    assert plan.settings.items() >= {**settings, 'seed': 0}.items()
    assert plan.also_train == also and plan.blocks


def test_cdra_without_a_budget_takes_half_a_percent():
    assert make_method({'type': 'cdra'}).budget_percent == 0.5
    assert make_method({'type': 'cdra', 'gamma': 0.1}).budget_percent is None


def test_cdra_percentage_is_of_the_whole_backbone():
    backbone = TinyViT()
    total = sum(p.numel() for p in backbone.parameters())
    plan = decide({'type': 'cdra', 'budget_percent': 20.0, 'rank_rule': 'count'}, backbone)
    assert 0.15 * total < plan.num_trainable <= 0.2 * total


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(type='crda'), r"'crda' is unknown \(did you mean 'cdra'\?\)"),
        (dict(type='xyz'), r"'xyz' is unknown: expected one of cdra"),
        (dict(), 'None is unknown'),
        (dict(type='cdra', gama=0.1), r"no setting 'gama' \(did you mean 'gamma'\?\)"),
        (dict(type='linear', gamma=0.1), r"'linear' has no setting 'gamma'.*expected none"),
        (
            dict(type='cdra', gamma=0.1, budget_params=9),
            'gamma=0.1, budget_params=9: give only one',
        ),
        (dict(type='cdra', gamma=0.0), r'gamma=0\.0: expected a fraction'),
        (dict(type='cdra', gamma=1.5), r'gamma=1\.5: expected a fraction'),
        (dict(type='cdra', budget_percent=0.0), r'budget_percent=0\.0: expected a percentage'),
        (dict(type='cdra', budget_percent=120), r'budget_percent=120: expected a percentage'),
        (dict(type='cdra', budget_params=0), 'budget_params=0: expected a count'),
        (dict(type='cdra', num_sensitive=2.5), r'num_sensitive=2\.5: expected an integer'),
        (dict(type='cdra', rank_rule='eq8'), "rank_rule='eq8': expected 'eq7' or 'count'"),
        (dict(type='cdra', min_rank=-1), 'min_rank=-1: expected an integer'),
        (dict(type='cdra', beta=0), 'beta=0: expected a number above 0'),
    ],
)
def test_wrong_settings_are_refused_by_name(config, message):
    with pytest.raises(ConfigError, match=message):
        make_method(config)
