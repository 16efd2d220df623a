"""timm's transformers as dense backbones, and mmpretrain's with every layer normalised."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import timm
import torch
from mmengine.registry import MODELS
from safetensors.torch import load_file
from torch import Tensor

from cdra_mm.core import ConfigError
from cdra_mm.mm.backbones import MultiLayerViT, TimmViT
from tests.models import spread

TINY = dict(embed_dim=16, depth=3, num_heads=2, patch_size=8)
NORMED = (
    'vit_tiny_patch16_224',
    'deit_tiny_distilled_patch16_224',
    'vit_small_patch14_reg4_dinov2.lvd142m',
    'vit_small_patch16_dinov3.lvd1689m',
)
POOLED = ('eva02_tiny_patch14_224', 'beit_base_patch16_224')  # their norm comes after pooling
SIZES = [(32, 32), (32, 48), (56, 24)]


def build(name: str, seed: int = 0, **options: Any) -> TimmViT:
    config: dict[str, Any] = dict(model_name=name, img_size=32, **options)
    torch.manual_seed(seed)
    backbone = MODELS.build(dict(config, type='cdra_mm.mm.backbones.TimmViT', options=TINY))
    spread(backbone)
    return backbone.eval()


def images(size: tuple[int, int] = (32, 32), count: int = 2) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('name', NORMED)
def test_timm_vit_gives_timms_own_normed_features(name, size):
    backbone = build(name, out_indices=(0, -1))
    assert (backbone.embed_dims, backbone.patch_size, backbone.out_indices) == (16, 8, (0, 2))
    maps = backbone(images(size))
    expected = backbone.vit.forward_intermediates(
        images(size), indices=[0, 2], norm=True, intermediates_only=True
    )
    assert [tuple(m.shape) for m in maps] == [(2, 16, size[0] // 8, size[1] // 8)] * 2
    for actual, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', POOLED)
def test_timm_vit_without_a_norm_gives_timms_own_features(name):
    backbone = build(name, out_indices=(1, 2), final_norm='none')
    expected = backbone.vit.forward_intermediates(
        images(), indices=[1, 2], norm=False, intermediates_only=True
    )
    for actual, wanted in zip(backbone(images()), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_timm_vit_final_norms_differ_where_they_say():
    every, last, none = (
        build(NORMED[0], out_indices=(0, 2), final_norm=kind)(images())
        for kind in ('every', 'last', 'none')
    )
    assert torch.equal(last[0], none[0]) and torch.equal(last[1], every[1])
    assert not torch.allclose(every[0], none[0]) and not torch.allclose(every[1], none[1])


@pytest.mark.parametrize('name', [*NORMED, *POOLED])
def test_timm_vit_pooled_outputs_are_timms_own(name):
    """What timm's classifier sees, by its two ways of pooling."""
    for out_type, pool in (('cls_token', 'token'), ('avg_featmap', 'avg')):
        backbone = build(name, out_type=out_type)
        (pooled,) = backbone(images())
        tokens = backbone.vit.forward_features(images())
        skipped = backbone.vit.num_prefix_tokens
        by_hand = tokens[:, 0] if pool == 'token' else tokens[:, skipped:].mean(1)
        torch.testing.assert_close(pooled, backbone.vit.fc_norm(by_hand), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('out_type', ['featmap', 'cls_token', 'avg_featmap'])
@pytest.mark.parametrize('name', [*NORMED, *POOLED, 'vit_base_patch16_siglip_224'])
def test_timm_vit_has_no_weight_without_effect(name, out_type):
    """Or distributed training would wait for gradients that never come."""
    if out_type == 'cls_token' and 'siglip' in name:
        with pytest.raises(ConfigError, match='no class token'):
            build(name, out_type=out_type)
        return
    options = dict(final_norm='none') if out_type == 'featmap' and name in POOLED else {}
    backbone = build(name, out_type=out_type, **options)
    sum(output.pow(3).sum() for output in backbone(images())).backward()
    unused = [name for name, p in backbone.named_parameters() if p.grad is None]
    assert unused == []


def test_timm_vit_with_two_norms_keeps_the_one_that_maps_pass():
    options = dict(TINY, use_post_transformer_norm=True)
    backbone = TimmViT(POOLED[0], img_size=32, options=options)
    sum(output.pow(3).sum() for output in backbone(images())).backward()
    assert all(p.grad is not None for p in backbone.parameters())


REFUSED = {
    'a name that is nearly right': (dict(model_name='vit_tny_patch16_224'), 'vit_tiny_patch16_224'),
    'a tag that is nearly right': (
        dict(model_name='vit_base_patch14_reg4_dinov2.lvd142'),
        'vit_base_patch14_reg4_dinov2.lvd142m',
    ),
    'a convolutional network': (
        dict(model_name='resnet18', img_size=None, options={}),
        'ResNet.*TIMMBackbone',
    ),
    'a layer too many': (dict(out_indices=(0, 3)), '0 to 2'),
    'layers out of order': (dict(out_indices=(-1, 0)), 'ascending'),
    'no layer': (dict(out_indices=()), 'out_indices'),
    'an unknown output': (dict(out_type='raw'), 'featmap, cls_token, avg_featmap'),
    'an unknown norm': (dict(final_norm=True), 'every, last, none'),
    'an unknown setting of timm': (dict(options=dict(TINY, depht=2)), 'depht'),
    'a norm for tokens that is none': (dict(model_name=POOLED[0]), 'final_norm="none"'),
    'weights from two places': (
        dict(pretrained=True, init_cfg=dict(type='Pretrained', checkpoint='a.pth')),
        'one of pretrained, init_cfg',
    ),
    'weights in fp16': (
        dict(dtype='float16'),
        "dtype='float16': expected one of float32, bfloat16",
    ),
    'an initialisation of mmengine': (dict(init_cfg=dict(type='Normal')), 'TimmPretrained'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_timm_vit_refuses(case):
    config, message = REFUSED[case]
    options = dict(model_name=NORMED[0], img_size=32, options=TINY)
    with pytest.raises(ConfigError, match=message):
        TimmViT(**{**options, **config})


def test_timm_vit_without_timm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ConfigError, match='pip install timm'):
        TimmViT(NORMED[0])


def test_timm_vit_refuses_images_that_do_not_fit():
    with pytest.raises(ConfigError, match='36x32 pixels.*patch size 8.*32x32'):
        build(NORMED[0])(images((36, 32)))
    with pytest.raises(ConfigError, match=r'takes only 32x32; set img_size=\(40, 32\)'):
        build(POOLED[1], final_norm='none')(images((40, 32)))


NAMES = {
    'patch_embed.proj': 'patch_embed.projection',
    'norm': 'ln1',
    'norm1': 'ln1',
    'norm2': 'ln2',
    'attn.qkv': 'attn.qkv',
    'attn.proj': 'attn.proj',
    'mlp.fc1': 'ffn.layers.0.0',
    'mlp.fc2': 'ffn.layers.1',
    'ls1.gamma': 'attn.gamma1.weight',
    'ls2.gamma': 'ffn.gamma2.weight',
}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names as mmpretrain's, without the classifier."""
    new = {}
    for key, value in state.items():
        block, inner = (
            (key.split('.', 2)[1], key.split('.', 2)[2]) if 'blocks.' in key else ('', key)
        )
        module, _, kind = inner.rpartition('.')
        name = NAMES.get(inner) or f'{NAMES.get(module, module)}.{kind}'.removeprefix('.')
        if module != 'head':
            new[f'layers.{block}.{name}' if block else name] = value
    return new


def multi_layer(**options: Any) -> MultiLayerViT:
    arch = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=64)
    config = dict(arch=arch, img_size=32, patch_size=8, out_type='featmap', out_indices=[0, 1, 2])
    backbone = MODELS.build(dict(config, type='cdra_mm.mm.backbones.MultiLayerViT', **options))
    backbone.eval()  # which mmpretrain does not chain
    return backbone


def test_multi_layer_vit_equals_dinov2s_definition():
    name = 'vit_small_patch14_dinov2'
    stock = timm.create_model(name, img_size=32, num_classes=0, **TINY).eval()
    spread(stock)
    backbone = multi_layer(layer_scale_init_value=1e-5)
    result = backbone.load_state_dict(renamed(stock.state_dict()))
    assert not result.missing_keys and not result.unexpected_keys
    expected = stock.forward_intermediates(images(), norm=True, intermediates_only=True)
    for actual, wanted in zip(backbone(images()), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
    raw = stock.forward_intermediates(images(), norm=False, intermediates_only=True)
    assert not torch.allclose(raw[0], expected[0], atol=0.1)


def test_multi_layer_vit_equals_the_stock_class_on_the_last_layer():
    backbone = multi_layer()
    spread(backbone)
    stock = MODELS.build(
        dict(
            type='mmpretrain.VisionTransformer',
            arch=backbone.arch_settings,
            img_size=32,
            patch_size=8,
            out_type='featmap',
        )
    )
    stock.eval()
    stock.load_state_dict(backbone.state_dict())
    assert torch.equal(stock(images())[0], backbone(images())[-1])


def test_multi_layer_vit_refuses_to_be_without_a_norm():
    with pytest.raises(ConfigError, match='final_norm'):
        multi_layer(final_norm=False)


@pytest.mark.shared
def test_both_backbones_agree_on_real_weights(shared):
    path = str(shared / 'models' / 'deit_tiny_in1k_timm.safetensors')
    config = dict(type='Pretrained', checkpoint=path)
    first = TimmViT('deit_tiny_patch16_224', out_indices=(2, 11), init_cfg=config).eval()
    first.init_weights()
    second = MultiLayerViT('deit-tiny', out_type='featmap', out_indices=[2, 11])
    second.eval()
    second.load_state_dict(renamed(load_file(path)))
    peer = timm.create_model('deit_tiny_patch16_224').eval()
    peer.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    # Tokens of this file reach 200: in single precision rounding alone may come near 1e-5.
    x = images((224, 224), 1).double()
    expected = peer.double().forward_intermediates(x, [2, 11], norm=True, intermediates_only=True)
    for a, b, c in zip(first.double()(x), second.double()(x), expected, strict=True):
        torch.testing.assert_close(a, c, rtol=0, atol=1e-5)
        torch.testing.assert_close(b, c, rtol=0, atol=1e-5)
