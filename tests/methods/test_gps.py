"""GPS: k connections of every neuron, all biases; trained as compact values."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models import create_model

from cdra_mm.core import (
    ConfigError,
    Plan,
    PlanError,
    adapters,
    apply_plan,
    count_parameters,
    find_targets,
    merge_adapters,
)
from cdra_mm.methods import Request, make_method
from tests.methods.adapted import come_back
from tests.models import TinySwin, TinyViT
from tests.reference.layers import dense_model

MODELS = {
    'fused': TinyViT,
    'mha': lambda: TinyViT(attention='mha_sequence'),
    'swin': TinySwin,
    'gated': lambda: TinyViT('swiglu'),
}


def scores_of(backbone):
    """Few different values, so that most rows hold ties."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 4, target.shape, generator=generator).float()
        for name, target in find_targets(backbone).items()
    }


def decide(backbone, scores=None, **settings):
    scores = scores_of(backbone) if scores is None else scores
    method = make_method({'type': 'gps', **settings})
    return method.plan(Request(backbone, scores, also_train={'cls_token': 8}))


@pytest.mark.parametrize('kind', MODELS)
@pytest.mark.parametrize('k', [1, 3])
def test_gps_takes_the_k_largest_of_every_row(kind, k):
    backbone = MODELS[kind]()
    scores = scores_of(backbone)
    plan = decide(backbone, scores, k=k)
    expected = {}
    for name, score in scores.items():
        if score.dim() == 2:
            width = score.shape[1]
            expected[name] = []
            for i, row in enumerate(score.tolist()):
                best = sorted(range(width), key=lambda j: (-row[j], j))[:k]
                expected[name] += sorted(i * width + j for j in best)
    assert {m.name: list(m.indices) for m in plan.sparse} == expected
    assert plan.num_sensitive == sum(map(len, expected.values()))
    assert not plan.also_train and Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize('kind', MODELS)
def test_gps_trains_biases_and_scales_whole_and_no_norm(kind):
    backbone = MODELS[kind]()
    plan = decide(backbone)
    whole = {vector.name for vector in plan.vectors}
    assert all(vector.indices is None for vector in plan.vectors)
    norms = {
        f'{path}.{name}'
        for path, module in backbone.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
        for name in ('weight', 'bias')
    }
    vectors = {name for name, p in backbone.named_parameters() if p.dim() == 1}
    assert whole == vectors - norms
    model = apply_plan(copy.deepcopy(backbone), plan)
    assert count_parameters(model)[0] == plan.num_trainable


def test_gps_counts_of_vit_base_follow_from_the_definition():
    """12 blocks of (3 + 1 + 4 + 1) x 768 rows, as many biases, the patch embedding's bias."""
    with torch.device('meta'):
        backbone = create_model('vit_base_patch16_224', num_classes=0)
    scores = {
        name: torch.zeros(1).expand(target.shape) for name, target in find_targets(backbone).items()
    }
    assert decide(backbone, scores).num_trainable == 2 * 12 * 9 * 768 + 768 == 166_656


@pytest.mark.parametrize('kind', MODELS)
def test_gps_equals_dense_weights_and_comes_back(kind, tmp_path):
    base = MODELS[kind]().double().eval()
    plan = decide(base, k=2)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = apply_plan(copy.deepcopy(base), plan).eval()
    torch.testing.assert_close(model(x), base(x))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    dense = dense_model(base, model.state_dict())
    y, expected = model(x), dense(x)
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    y.backward(seed)
    expected.backward(seed)
    for name, adapter in adapters(model).items():
        target = find_targets(base)[name]
        grad = dense.get_parameter(target.path).grad[target.start : target.stop]
        torch.testing.assert_close(adapter.value.grad, grad.flatten()[adapter.index])
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
    for vector in plan.vectors:
        torch.testing.assert_close(
            model.get_parameter(vector.name).grad, dense.get_parameter(vector.name).grad
        )
    for other in come_back(base, model, plan, tmp_path):
        assert torch.equal(other(x), y)
    merge_adapters(model)
    plain = copy.deepcopy(base)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), y)


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        (dict(k=0), ConfigError, 'k=0: expected a count of at least 1'),
        (dict(k=True), ConfigError, 'k=True: expected an integer'),
        (
            dict(loss='ce'),
            ConfigError,
            "loss='ce': expected one of 'supervised_",
        ),
        (dict(k=9), PlanError, 'weight:q has 8 columns: expected k=9 to be at most that'),
    ],
)
def test_gps_refuses_settings_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        decide(TinyViT(), **settings)
