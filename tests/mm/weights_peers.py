"""Tiny networks of timm and the OpenMMLab backbones of the same architecture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mmpretrain.models as mmpretrain
import mmseg.models.backbones as mmseg
import numpy as np
import torch
from timm.layers import SwiGLUPacked
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

WIDTH, DEPTH, HEADS, HIDDEN, PATCH, SIZE = 12, 2, 2, 24, 4, 16
SWIN_SIZE = 64  # maps of 16, 8 and 4, whose last is one window
ARCH = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=HIDDEN)


def perturbed(model: nn.Module) -> nn.Module:
    """Every parameter moved, so that one that is lost or swapped shows in the outputs."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.eval()  # which does not always return the model
    return model


def timm_vit(cls: type = VisionTransformer, **kwargs: Any) -> nn.Module:
    settings = dict(img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)
    return perturbed(cls(**(settings | dict(num_classes=5, mlp_ratio=2) | kwargs)))


timm_distilled = partial(timm_vit, VisionTransformerDistilled)
timm_beit = partial(timm_vit, Beit, init_values=0.1)
timm_dinov2 = partial(timm_vit, init_values=1e-5)
# 24 hidden channels of 36, as mmpretrain rounds two thirds of them.
timm_swiglu = partial(timm_dinov2, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=4)


def timm_swin(**kwargs: Any) -> nn.Module:
    settings = dict(
        img_size=SWIN_SIZE, patch_size=4, embed_dim=WIDTH, depths=(2, 1, 1), window_size=4
    )
    return perturbed(SwinTransformer(num_heads=(2, 3, 4), num_classes=5, **(settings | kwargs)))


def mmpretrain_vit(cls: type = mmpretrain.VisionTransformer, **kwargs: Any) -> nn.Module:
    return _quiet(
        cls(**(dict(arch=ARCH, img_size=SIZE, patch_size=PATCH, out_type='raw') | kwargs))
    )


mmpretrain_distilled = partial(mmpretrain_vit, mmpretrain.DistilledVisionTransformer)
mmpretrain_beit = partial(mmpretrain_vit, mmpretrain.BEiTViT, final_norm=True)
mmpretrain_dinov2 = partial(mmpretrain_vit, layer_scale_init_value=1e-5)
mmpretrain_swiglu = partial(
    mmpretrain_dinov2,
    arch=ARCH | dict(feedforward_channels=36),
    layer_cfgs=dict(ffn_type='swiglu_fused'),
)


def mmpretrain_swin(**kwargs: Any) -> nn.Module:
    arch = dict(embed_dims=WIDTH, depths=[2, 1, 1], num_heads=[2, 3, 4])
    settings = dict(arch=arch, img_size=SWIN_SIZE, window_size=4, out_indices=(0, 1, 2))
    return _quiet(mmpretrain.SwinTransformer(**(settings | kwargs)))


def mmseg_vit(cls: type = mmseg.VisionTransformer, **kwargs: Any) -> nn.Module:
    settings = dict(img_size=SIZE, patch_size=PATCH, embed_dims=WIDTH, num_layers=DEPTH)
    settings |= dict(num_heads=HEADS, mlp_ratio=2, norm_cfg=dict(type='LN', eps=1e-6))
    if cls is mmseg.VisionTransformer:
        settings |= dict(patch_bias=True, output_cls_token=True)
    return _quiet(cls(**(settings | dict(final_norm=True) | kwargs)))


mmseg_beit = partial(mmseg_vit, mmseg.BEiT)


def mmseg_swin(**kwargs: Any) -> nn.Module:
    settings = dict(embed_dims=WIDTH, depths=(2, 1, 1), num_heads=(2, 3, 4), strides=(4, 2, 2))
    settings |= dict(window_size=4, out_indices=(0, 1, 2))
    return _quiet(mmseg.SwinTransformer(**(settings | kwargs)))


def _quiet(backbone: nn.Module) -> nn.Module:
    backbone.eval()
    return backbone


def image(size: int | tuple[int, int] = SIZE, count: int = 2) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, height, width, generator=generator)


@torch.no_grad()
def tokens(model: nn.Module, images: Tensor) -> Tensor:
    """All tokens after the final norm, ``[B, L, E]``; without extra ones where mmseg drops them."""
    if hasattr(model, 'forward_features'):
        return model.forward_features(images)
    output = model(images)[-1]
    if isinstance(output, (list, tuple)):
        grid, extra = output
        return torch.cat([extra[:, None], grid.flatten(2).transpose(1, 2)], 1)
    return output.flatten(2).transpose(1, 2) if output.dim() == 4 else output


@torch.no_grad()
def difference(peer: nn.Module, backbone: nn.Module, images: Tensor) -> float:
    """Largest difference of a token, relative to nothing: tokens are near one after a norm."""
    expected, actual = tokens(peer, images), tokens(backbone, images)
    if expected.dim() == 4:  # Swin's [B, H, W, E]
        expected = expected.flatten(1, 2)
    assert expected.std() > 0.1
    return (expected[:, -actual.shape[1] :] - actual).abs().max().item()


def original_swin(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's Swin as Microsoft numbers it, with the buffers that its files hold."""
    renamed = {}
    for name, tensor in state_dict.items():
        parts = name.split('.')
        if parts[2:3] == ['downsample']:
            parts[1] = str(int(parts[1]) - 1)
        renamed['.'.join(parts)] = tensor
    renamed['layers.0.blocks.1.attn_mask'] = torch.zeros(1)
    renamed['layers.0.blocks.0.attn.relative_position_index'] = torch.zeros(16, 16).long()
    return renamed


def write_google_npz(model: nn.Module, path: Path) -> None:
    """A plain ViT in the layout that timm reads from Google's files."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays: dict[str, np.ndarray] = {'cls': state['cls_token']}
    arrays['Transformer/posembed_input/pos_embedding'] = state['pos_embed']
    arrays['embedding/kernel'] = state['patch_embed.proj.weight'].transpose(2, 3, 1, 0)
    arrays['embedding/bias'] = state['patch_embed.proj.bias']
    norms = {'Transformer/encoder_norm': 'norm'}
    denses = {'head': 'head'}
    for i in range(DEPTH):
        block = f'Transformer/encoderblock_{i}'
        norms |= {f'{block}/LayerNorm_0': f'blocks.{i}.norm1'}
        norms |= {f'{block}/LayerNorm_2': f'blocks.{i}.norm2'}
        denses |= {f'{block}/MlpBlock_3/Dense_{k}': f'blocks.{i}.mlp.fc{k + 1}' for k in (0, 1)}
        attention = f'{block}/MultiHeadDotProductAttention_1'
        heads = (HEADS, WIDTH // HEADS)
        weights = np.split(state[f'blocks.{i}.attn.qkv.weight'], 3)
        biases = np.split(state[f'blocks.{i}.attn.qkv.bias'], 3)
        for part, weight, bias in zip(('query', 'key', 'value'), weights, biases, strict=True):
            arrays[f'{attention}/{part}/kernel'] = weight.T.reshape(WIDTH, *heads)
            arrays[f'{attention}/{part}/bias'] = bias.reshape(heads)
        out = state[f'blocks.{i}.attn.proj.weight']
        arrays[f'{attention}/out/kernel'] = out.T.reshape(*heads, WIDTH)
        arrays[f'{attention}/out/bias'] = state[f'blocks.{i}.attn.proj.bias']
    for own, timm in norms.items():
        arrays |= {f'{own}/scale': state[f'{timm}.weight'], f'{own}/bias': state[f'{timm}.bias']}
    for own, timm in denses.items():
        arrays |= {f'{own}/kernel': state[f'{timm}.weight'].T, f'{own}/bias': state[f'{timm}.bias']}
    np.savez(path, **arrays)


Builder = Callable[..., nn.Module]
