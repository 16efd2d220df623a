"""A plan that does not fit is refused before anything of the model has changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from cdra_mm.core import (
    CDRAError,
    Plan,
    PlanError,
    Vector,
    adapters,
    apply_plan,
    estimate_scores,
    find_targets,
    fingerprint,
    plan_from_masks,
)
from tests.core.problems import adapted, outputs, random_masks, random_plan
from tests.models import MODELS, TinyViT, images, losses

BAD_PLANS = {
    'another architecture': (lambda: TinyViT(dim=16), 'blocks.0'),
    'fewer blocks': (lambda: TinyViT(depth=1), 'blocks.1'),
    'another FFN': (lambda: TinyViT(ffn='swiglu'), 'mlp.fc1'),
    'another hidden size': (lambda: TinyViT(hidden=20), 'mlp.fc1'),
    'other base weights': (TinyViT, 'fingerprint|base weights'),
}


@pytest.mark.parametrize(('build', 'message'), BAD_PLANS.values(), ids=BAD_PLANS)
def test_apply_plan_refuses_a_plan_that_does_not_fit(build, message):
    plan = random_plan(TinyViT())
    model = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(PlanError, match=message):
        apply_plan(model, plan)
    assert list(model.state_dict()) == list(before)
    assert all(p.requires_grad for p in model.parameters())
    assert type(model.blocks[0].attn.proj) is nn.Linear


def test_apply_plan_refuses_a_vector_of_another_length():
    model = TinyViT()
    plan = Plan(method='cdra', vectors=(Vector('blocks.0.norm1.bias', 9, None, 9),))
    with pytest.raises(PlanError, match=r'blocks\.0\.norm1\.bias has shape \(8,\).*\(9,\)'):
        apply_plan(model, plan)


def test_apply_plan_refuses_an_also_train_of_another_size():
    model = TinyViT()
    plan = plan_from_masks(random_masks(model), rank_rule=1, also_train={'cls_token': 9})
    with pytest.raises(PlanError, match=r'cls_token has shape \(1, 1, 8\), the plan says 9'):
        apply_plan(model, plan)
    assert adapters(model) == {}


def test_apply_plan_for_other_base_weights_shows_the_begin_of_both_fingerprints():
    plan = random_plan(TinyViT())
    model = TinyViT()
    begins = plan.fingerprint[:12], fingerprint(model)[:12]
    with pytest.raises(PlanError, match=r'fingerprint {}, this model has {}\)'.format(*begins)):
        apply_plan(model, plan)


def test_apply_plan_refuses_an_adapted_model():
    _, model, plan = adapted('fused')
    expected = outputs(model)
    with pytest.raises(PlanError, match='(?i)already|adapted'):
        apply_plan(model, plan)
    assert torch.equal(outputs(model), expected)


def test_apply_plan_refuses_a_path_to_keep_that_is_no_module():
    model = TinyViT()
    with pytest.raises(PlanError, match='decode_haed'):
        apply_plan(model, random_plan(model), keep_trainable=('decode_haed',))
    assert adapters(model) == {}


def test_apply_plan_refuses_an_also_train_that_is_not_there():
    model = MODELS['windowed']()
    plan = plan_from_masks(random_masks(model), rank_rule=1, also_train={'cls_token': 8})
    with pytest.raises(PlanError, match='cls_token'):
        apply_plan(model, plan)
    assert adapters(model) == {}


def test_scores_of_an_adapted_model_are_refused_or_of_its_base():
    """Scoring twice must not silently score something else."""
    base, model, _ = adapted('fused', moved=False)
    batches = [images(4, torch.float64)]
    expected = estimate_scores(base, batches, losses)
    try:
        scores = estimate_scores(model, batches, losses)
    except CDRAError as error:
        assert 'adapt' in str(error) or 'blocks.' in str(error)
    else:
        for name, score in expected.items():
            torch.testing.assert_close(scores[name], score)


class Int8Linear(nn.Linear):
    """A quantised layer as bitsandbytes has it: a Linear that holds whole numbers."""

    def __init__(self, plain):
        super().__init__(plain.in_features, plain.out_features)
        values = (plain.weight.detach() * 100).to(torch.int8)
        self.weight = nn.Parameter(values, requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) / 100, self.bias)


class Wrapped(torch.Tensor):
    """Gives itself out as a floating-point tensor, as torchao's quantised ones do."""


@pytest.mark.parametrize('kind', ['int8', 'wrapper'])
def test_quantised_weights_are_refused_by_name(kind):
    plan, model = random_plan(TinyViT()), TinyViT()
    layer, what = model.blocks[0].mlp.fc1, 'torch.int8'
    if kind == 'int8':
        model.blocks[0].mlp.fc1 = Int8Linear(layer)
    else:
        values = layer.weight.detach().as_subclass(Wrapped)
        layer.weight, what = nn.Parameter(values, requires_grad=False), 'Wrapped'
    message = rf'blocks\.0\.mlp\.fc1\.weight of a \w+ is no plain floating-point .*{what}'
    with pytest.raises(PlanError, match=message):
        find_targets(model)
    with pytest.raises(PlanError, match=message):
        estimate_scores(model, [images(2)], losses)
    with pytest.raises(PlanError, match=message):
        apply_plan(model, replace(plan, fingerprint=''))
    assert adapters(model) == {}
