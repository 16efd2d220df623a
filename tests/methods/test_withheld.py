"""What is withheld is trained and adapted by no method, and by no plan file."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core import PlanError, adapters, apply_plan, find_targets
from cdra_mm.core.adapters.adapter import CallAdapter
from cdra_mm.methods import METHODS, Request, make_method
from cdra_mm.methods.base import FROZEN, UNREACHED

from .adapted import timm_vit, tiny

SETTINGS = {
    'cdra': dict(budget_percent=20.0, rank_rule='count'),
    'spt_lora': dict(rank=2, budget_percent=30.0),
    'spt_adapter': dict(rank=2, budget_percent=30.0),
    'lora': dict(rank=2, targets='all'),
    'soma': dict(rank=2),
    'dora': dict(rank=2, targets='all'),
    'gps': dict(loss='task'),
    'noah': dict(prompt_dims=[1], lora_dims=[1], adapter_dims=[1], budget_percent=100.0),
}


class Tried:
    """Trials of which each plan is worth the same."""

    seed = 0

    def train(self, largest, draw, **_) -> None:
        pass

    def fitness(self, plan) -> float:
        return 1.0


def request_for(name: str, backbone, withheld) -> Request:
    request = Request(backbone, withheld=withheld, trials=Tried())
    if not METHODS[name].needs_scores:
        return request
    generator = torch.Generator().manual_seed(0)
    shapes = {n: t.shape for n, t in request.targets().items()}
    scores = {n: torch.rand(shape, generator=generator) for n, shape in shapes.items()}
    return Request(backbone, scores, withheld=withheld)


def plan_of(name: str, backbone, withheld):
    method = make_method({'type': name, **SETTINGS.get(name, {})})
    return method.plan(request_for(name, backbone, withheld))


def below(backbone, *paths: str, why: str = FROZEN) -> dict[str, str]:
    """Everything below some paths, withheld."""
    names = [n for n, _ in backbone.named_parameters() if n.startswith(paths)]
    assert names
    return dict.fromkeys(names, why)


@pytest.mark.parametrize('name', [name for name in METHODS if name not in ('full', 'linear')])
def test_no_method_touches_what_is_withheld(name):
    backbone = timm_vit()
    withheld = below(backbone, 'blocks.2.', 'norm.', 'pos_embed', why=UNREACHED)
    withheld |= below(backbone, 'patch_embed.', 'blocks.0.mlp.fc1')
    plan = plan_of(name, backbone, withheld)
    apply_plan(backbone, plan)
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert trained and not trained & set(withheld)
    for at, adapter in adapters(backbone).items():
        if isinstance(adapter, CallAdapter):
            path = at.rpartition('.')[0]
            # Behind the backbone, in a block with something to train, or on a layer to train.
            assert path in ('', 'blocks.0', 'blocks.1') or f'{path}.weight' not in withheld, at
        else:
            assert find_targets(backbone)[at].path not in withheld, at
    Request(backbone, withheld=withheld).check(plan)
    if name in (
        'partial',
        'lora',
        'bias',
        'adapter',
        'vpt_deep',
        'rlrr',
        'gps',
        'apla',
        'soma',
        'dora',
        'mona',
    ):  # the last left
        assert any('blocks.1.' in n for n in trained)


def test_partial_takes_the_last_block_that_the_loss_depends_on():
    backbone = tiny(depth=3)
    plan = plan_of('partial', backbone, below(backbone, 'blocks.2.', why=UNREACHED))
    assert {n.rpartition('.')[0].split('.')[1] for n in plan.also_train if 'blocks' in n} == {'1'}


@pytest.mark.parametrize('name', [name for name in METHODS if name not in ('linear', 'mlp')])
def test_nothing_left_is_an_error_that_says_why(name):
    backbone = timm_vit()
    withheld = below(backbone, '')
    with pytest.raises(PlanError, match=r'nothing is left to train .* freezes 4\d of .*frozen_st'):
        plan_of(name, backbone, withheld)


@pytest.mark.parametrize('name', ['linear', 'mlp'])
def test_what_leaves_the_backbone_alone_works_on_a_frozen_one(name):
    backbone = timm_vit()
    assert plan_of(name, backbone, below(backbone, '')) is not None


@pytest.mark.parametrize(
    'name', [name for name in METHODS if name not in ('full', 'linear', 'mlp')]
)
def test_a_plan_that_was_made_for_more_is_refused_by_name(name):
    backbone = timm_vit()
    plan = plan_of(name, backbone, {})
    withheld = below(backbone, 'blocks.', 'cls_token', 'norm.', 'patch_embed.', why=UNREACHED)
    if name == 'vpt_shallow':  # its prompts go in before the first block, whichever are frozen
        Request(backbone, withheld=withheld).check(plan)
        return
    with pytest.raises(PlanError, match=r'the first is .*: the training loss does not depend'):
        Request(backbone, withheld=withheld).check(plan)
