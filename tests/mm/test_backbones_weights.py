"""Weights for `TimmViT`: files of timm and of the publishers, timm's hub, what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cdra_mm.core import CheckpointError
from tests.models import spread

from .test_backbones import NORMED, POOLED, TINY, build


def weights_of(name: str, size: int) -> dict[str, Tensor]:
    """Random weights as timm publishes them for an image size, with a classifier."""
    torch.manual_seed(9)
    config = dict(TINY, img_size=size, num_classes=5)
    model = timm.create_model(name, **config)
    spread(model)
    return {key: value.contiguous() for key, value in model.state_dict().items()}


@pytest.mark.parametrize('ending', ['.safetensors', '.pth'])
@pytest.mark.parametrize('name', [*NORMED, *POOLED])
def test_timm_vit_loads_files_of_another_size_as_timm_does(name, ending, tmp_path):
    path = str(tmp_path / f'weights{ending}')
    state = weights_of(name, 48)
    save_file(state, path) if ending == '.safetensors' else torch.save({'model': state}, path)
    final_norm = 'none' if name in POOLED else 'every'
    init_cfg = dict(type='Pretrained', checkpoint=path)
    backbone = build(name, final_norm=final_norm, init_cfg=init_cfg)
    backbone.init_weights()
    overlay = dict(file=path, num_classes=5)
    options = dict(TINY, img_size=32, num_classes=5, pretrained_cfg_overlay=overlay)
    stock = timm.create_model(name, pretrained=True, **options).eval()
    expected = stock.state_dict()
    own = backbone.vit.state_dict()
    assert set(expected) - set(own) <= {
        f'{module}.{kind}'
        for module in ('head', 'head_dist', 'fc_norm')
        for kind in ('weight', 'bias')
    }
    assert all(torch.equal(value, expected[key]) for key, value in own.items())


def test_timm_vit_loads_dinov2_files_with_registers(tmp_path):
    """facebookresearch keeps a position for the class token and calls registers otherwise."""
    name = NORMED[2]
    state = weights_of(name, 32)
    expected = {key: value.clone() for key, value in state.items() if 'head' not in key}
    place = torch.randn(1, 1, 16)
    state['pos_embed'] = torch.cat([place, state['pos_embed']], 1)
    state['cls_token'] = state['cls_token'] - place
    state['register_tokens'] = state.pop('reg_token')
    state['mask_token'] = torch.zeros(1, 16)
    del state['head.weight'], state['head.bias']
    torch.save(state, tmp_path / 'dinov2.pth')
    config = dict(type='Pretrained', checkpoint=str(tmp_path / 'dinov2.pth'))
    backbone = build(name, init_cfg=config)
    backbone.init_weights()
    for key, value in backbone.vit.state_dict().items():
        torch.testing.assert_close(value, expected[key], msg=key)


def test_timm_vit_loads_dinov3_files(tmp_path):
    """facebookresearch fuses the biases, that of the key being zero."""
    name = 'vit_small_patch16_dinov3_qkvb'
    expected = {key: v for key, v in weights_of(name, 32).items() if 'head' not in key}
    state = {}
    for key, value in expected.items():
        key = key.replace('gamma_1', 'ls1.gamma').replace('gamma_2', 'ls2.gamma')
        state[key.replace('reg_token', 'storage_tokens')] = value
    for block in range(3):
        q, v = (state.pop(f'blocks.{block}.attn.{part}_bias') for part in 'qv')
        state[f'blocks.{block}.attn.qkv.bias'] = torch.cat([q, torch.zeros_like(q), v])
    state |= {'mask_token': torch.zeros(1, 16), 'rope_embed.periods': torch.ones(2)}
    torch.save(state, tmp_path / 'dinov3.pth')
    config = dict(type='Pretrained', checkpoint=str(tmp_path / 'dinov3.pth'))
    backbone = build(name, init_cfg=config)
    backbone.init_weights()
    own = backbone.vit.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in own.items())


def damaged(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == 'missing':
        return {k: v for k, v in state.items() if k != 'blocks.1.mlp.fc1.weight'}
    if how == 'unexpected':
        return {**state, 'blocks.3.mlp.fc1.weight': torch.zeros(2)}
    if how == 'of another shape':
        return {**state, 'blocks.1.mlp.fc1.weight': torch.zeros(2, 2)}
    return {'layer1.0.conv1.weight': torch.zeros(3, 3)}  # 'missing' of another kind of network


@pytest.mark.parametrize('how', ['missing', 'unexpected', 'of another shape', 'foreign'])
def test_timm_vit_refuses_a_partial_match(how, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(damaged(weights_of(NORMED[0], 32), how), path)
    backbone = build(NORMED[0], init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    pattern = 'weights.pth.*' + ('missing' if how == 'foreign' else how)
    with pytest.raises(CheckpointError, match=pattern):
        backbone.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_timm_vit_missing_file_is_named(tmp_path):
    config = dict(type='Pretrained', checkpoint=str(tmp_path / 'no.safetensors'))
    with pytest.raises(CheckpointError, match='no.safetensors'):
        build(NORMED[0], init_cfg=config).init_weights()


def test_timm_vit_loads_a_checkpoint_of_its_own_kind(tmp_path):
    first = build(NORMED[0])
    state = {f'backbone.{key}': value for key, value in first.state_dict().items()}
    assert all(key.startswith('backbone.vit.') for key in state)
    torch.save({'state_dict': {**state, 'decode_head.x': torch.ones(1)}}, tmp_path / 'run.pth')
    config = dict(type='Pretrained', checkpoint=str(tmp_path / 'run.pth'), prefix='backbone.')
    second = build(NORMED[0], seed=1, init_cfg=config)
    second.init_weights()
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in second.state_dict().items())


@pytest.mark.parametrize('how', ['pretrained', 'TimmPretrained', 'timm://'])
def test_timm_vit_loads_from_timms_hub(how, monkeypatch):
    asked = []
    name = 'vit_tiny_patch16_224.augreg_in21k'
    state = weights_of(name.partition('.')[0], 48)

    def from_hub(model: nn.Module, config: dict[str, Any], filter_fn: Any, **_: Any) -> None:
        asked.append(config['hf_hub_id'])
        model.load_state_dict(filter_fn(dict(state), model))

    monkeypatch.setattr(timm.models, 'load_pretrained', from_hub)
    options = {
        'pretrained': dict(pretrained=True),
        'TimmPretrained': dict(init_cfg=dict(type='TimmPretrained')),
        'timm://': dict(init_cfg=dict(type='Pretrained', checkpoint=f'timm://{name}')),
    }[how]
    backbone = build(name, **options)
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=f'timm://{name}')
    backbone.init_weights()
    assert asked == [f'timm/{name}']
    assert torch.equal(backbone.vit.state_dict()['norm.weight'], state['norm.weight'])
    assert backbone.vit.pos_embed.shape == (1, 17, 16)  # of 32 pixels, the hub's of 48


def test_timm_vit_says_when_the_hub_cannot_be_reached(monkeypatch):
    def offline(*_: Any, **__: Any) -> None:
        raise OSError('no route to host')

    monkeypatch.setattr(timm.models, 'load_pretrained', offline)
    backbone = build('vit_tiny_patch16_224.augreg_in21k', pretrained=True)
    with pytest.raises(CheckpointError, match='no route to host.*other means.*Pretrained'):
        backbone.init_weights()


def test_timm_vit_without_published_weights_says_so():
    with pytest.raises(CheckpointError, match='no pretrained weights.*list_pretrained'):
        build('vit_base_patch16_plus_240', pretrained=True).init_weights()
