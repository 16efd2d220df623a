"""LeViT and TinyViT: ``train()`` does more than set a flag, and q, k and v lie head by head."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from mmpretrain.models.backbones import LeViT, TinyViT
from torch import nn

from cdra_mm.core import estimate_scores, find_targets, merge_adapters, remove_adapters
from tests.core.problems import move
from tests.core.scoring.test_scores import assert_scores
from tests.models import spread
from tests.reference.layers import dense_state
from tests.reference.scores import mean_squares

from .test_backbones_families import Probe, adapt, losses

SIZE = 64
STAGES = dict(num_heads=(2, 2, 2, 3), depths=(1, 1, 1, 1))
KEY = 4
LEVIT = dict(embed_dim=(16, 24, 32), num_heads=(2, 3, 4), depth=(1, 1, 1))


def levit_of_mmpretrain() -> nn.Module:
    # Its check of a custom architecture asks for other names than its code reads.
    sizes = zip(('embed_dims', 'num_heads', 'depths'), LEVIT.values(), strict=True)
    arch = {key: list(value) for key, value in sizes} | {'key_dims': [KEY] * 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LeViT.arch_zoo, '128s', arch)
        return LeViT('128s', img_size=SIZE, drop_path_rate=0.2)


def tinyvit_of_mmpretrain() -> nn.Module:
    arch = dict(channels=[8, 16, 16, 24], **STAGES)
    sizes = dict(img_size=(SIZE, SIZE), window_size=[2] * 4, drop_path_rate=0.2)
    return TinyViT(arch, **sizes)


def levit_of_timm() -> nn.Module:
    sizes = dict(img_size=SIZE, key_dim=KEY, num_classes=0)
    return timm.create_model('levit_128s', **sizes, **LEVIT)


def tinyvit_of_timm() -> nn.Module:
    sizes = dict(embed_dims=(8, 16, 16, 24), window_sizes=(2,) * 4, **STAGES)
    return timm.create_model('tiny_vit_5m_224', num_classes=0, **sizes)


MODELS = {
    'mmpretrain LeViT': levit_of_mmpretrain,
    'mmpretrain TinyViT': tinyvit_of_mmpretrain,
    'timm LeViT': levit_of_timm,
    'timm TinyViT': tinyvit_of_timm,
}
KINDS = pytest.mark.parametrize('kind', MODELS)


def build(kind, seed=0):
    torch.manual_seed(seed)
    model = Probe(MODELS[kind]())
    spread(model)
    return model.double().eval()


def images(count=3):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)


def doubled(batch):
    """Each sample twice, alone: torch's batch norm takes a wrong gradient of a batch of one.

    In evaluation mode on a CPU, where that gradient comes transposed (torch 2.14.1).
    """
    return [(torch.cat([x, x]), torch.zeros(2)) for x in batch.split(1)]


@KINDS
@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluating'])
def test_modes_scores_equal_the_loop_over_single_samples(kind, training):
    model, x = build(kind), images()
    expected = mean_squares(model, doubled(x), losses, find_targets(model))
    assert all(float(score.abs().max()) > 0 for score in expected.values())
    model.train(training)
    assert_scores(estimate_scores(model, [(x, torch.zeros(3))], losses), expected)
    assert all(module.training is training for module in model.modules())


@KINDS
def test_modes_no_part_of_the_fused_matrix_is_called_q(kind):
    roles = {target.role for target in find_targets(build(kind)).values()}
    assert 'qkv' in roles and not roles & {'q', 'k', 'v'}


@KINDS
def test_modes_adapters_train_and_merge(kind):
    base, model, x = build(kind), build(kind), images()
    adapt(model)
    model.train()
    losses(model, (x, None)).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            # In training TinyViT's batch norm takes the bias before it away: rounding, or nothing.
            if 'TinyViT' not in kind or not name.endswith('mlp.fc2.cdra.bias.value'):
                assert parameter.grad.abs().max() > 1e-9, name
    move(model)
    with torch.no_grad():
        state = model.state_dict()
        base.load_state_dict(dense_state(state))
        model.eval()
        expected = base.eval()(x)
        torch.testing.assert_close(model(x), expected, rtol=1e-8, atol=1e-8)
        twin = copy.deepcopy(model)
        merge_adapters(twin)
        torch.testing.assert_close(twin(x), expected, rtol=1e-8, atol=1e-8)
        remove_adapters(twin)
        base.load_state_dict(twin.state_dict())
        torch.testing.assert_close(base(x), expected, rtol=1e-8, atol=1e-8)
