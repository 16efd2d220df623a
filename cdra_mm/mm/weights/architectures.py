"""The stock backbone that the shapes of a weight file ask for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from cdra_mm.errors import CheckpointError

from .common import CommonWeights
from .layouts import OWN_TABLE, SHARED_TABLE
from .positions import check_grid

__all__ = ['backbone_config']

Weights = Mapping[str, Tensor]
Config = dict[str, Any]

BLOCK_TABLE = OWN_TABLE.replace('#', '0')
BEIT_EXTRA = 3  # entries of BEiT's tables: class to token, token to class, class to class


def backbone_config(common: CommonWeights, to: str) -> Config:
    """Config of a backbone that takes these weights whole.

    The number of attention heads is in no file but those with tables of relative positions;
    elsewhere it is one for 64 channels, which changes no shape but has to be right in the config
    that uses the weights.

    Args:
        common: The weights.
        to: ``'mmpretrain'`` or ``'mmseg'``.

    Raises:
        CheckpointError: If that package has no such backbone.
    """
    weights = common.weights
    if 'patch_embed.proj.weight' not in weights:
        raise CheckpointError('patch_embed.proj.weight is missing: the file is incomplete')
    kind = 'beit' if BLOCK_TABLE in weights or SHARED_TABLE in weights else 'vit'
    if any(name.startswith('layers.') for name in weights):
        kind = 'swin'
    build, describe = CONFIGS[to, kind], (_swin if kind == 'swin' else _tokens)
    return build(describe(weights), weights)


def _tokens(weights: Weights) -> Config:
    """Sizes of a ViT or BEiT."""
    width, channels, patch, _ = weights['patch_embed.proj.weight'].shape
    gated = 'blocks.0.mlp.w12.weight' in weights
    last = weights['blocks.0.mlp.w3.weight' if gated else 'blocks.0.mlp.fc2.weight']
    depth = sum(bool(re.fullmatch(r'blocks\.\d+\.norm1\.weight', name)) for name in weights)
    table = weights.get(BLOCK_TABLE, weights.get(SHARED_TABLE))
    if 'pos_embed' in weights:
        extra = sum(token in weights for token in ('cls_token', 'dist_token'))
        count = weights['pos_embed'].shape[1]
        side = isqrt(count)
        if side * side != count:  # else a model without a position for its class token
            side = check_grid('pos_embed', count, extra)
    elif table is not None:
        side = (isqrt(table.shape[0] - BEIT_EXTRA) + 1) // 2
    else:
        raise CheckpointError('the file holds no positions: expected pos_embed or bias tables')
    heads = width // 64 if width % 64 == 0 else 1
    return {
        'embed_dims': width,
        'num_layers': depth,
        'num_heads': heads if table is None else table.shape[1],
        'hidden': last.shape[1],
        'patch_size': patch,
        'in_channels': channels,
        'img_size': side * patch,
        'gated': gated,
        'scaled': 'blocks.0.ls1.gamma' in weights,
    }


def _mmpretrain_tokens(sizes: Config, weights: Weights) -> Config:
    arch = {key: sizes[key] for key in ('embed_dims', 'num_layers', 'num_heads')}
    config = dict(
        arch=arch | dict(feedforward_channels=sizes['hidden']),
        img_size=sizes['img_size'],
        patch_size=sizes['patch_size'],
        in_channels=sizes['in_channels'],
        out_type='raw' if 'norm.weight' in weights else 'avg_featmap',
        final_norm='norm.weight' in weights,
        layer_scale_init_value=1e-5 if sizes['scaled'] else 0.0,
    )
    return config if 'cls_token' in weights else config | dict(with_cls_token=False)


def _mmpretrain_vit(sizes: Config, weights: Weights) -> Config:
    distilled = 'dist_token' in weights
    config = _mmpretrain_tokens(sizes, weights)
    config['type'] = f'mmpretrain.{"Distilled" if distilled else ""}VisionTransformer'
    config['qkv_bias'] = 'blocks.0.attn.qkv.bias' in weights
    config['pre_norm'] = 'norm_pre.weight' in weights
    if sizes['gated']:  # mmpretrain keeps two thirds of it
        config['layer_cfgs'] = dict(ffn_type='swiglu_fused')
        config['arch']['feedforward_channels'] = -(-sizes['hidden'] * 3 // 2)
    return config


def _mmpretrain_beit(sizes: Config, weights: Weights) -> Config:
    return dict(
        type='mmpretrain.BEiTViT',
        use_abs_pos_emb='pos_embed' in weights,
        use_rel_pos_bias=True,
        bias='qv_bias' if 'blocks.0.attn.q_bias' in weights else False,
        **_mmpretrain_tokens(sizes, weights),
    )


def _mmseg_tokens(sizes: Config, weights: Weights) -> Config:
    ratio, rest = divmod(sizes['hidden'], sizes['embed_dims'])
    if rest:
        raise CheckpointError(
            f'{sizes["hidden"]} hidden channels for {sizes["embed_dims"]}: backbones of mmseg take '
            'whole multiples only; convert to mmpretrain'
        )
    same = ('embed_dims', 'num_layers', 'num_heads', 'patch_size', 'in_channels', 'img_size')
    kept = {key: sizes[key] for key in same}
    return kept | dict(mlp_ratio=ratio, final_norm='norm.weight' in weights)


def _mmseg_vit(sizes: Config, weights: Weights) -> Config:
    return dict(
        type='mmseg.VisionTransformer',
        patch_bias='patch_embed.proj.bias' in weights,
        qkv_bias='blocks.0.attn.qkv.bias' in weights,
        pre_norm='norm_pre.weight' in weights,
        **_mmseg_tokens(sizes, weights),
    )


def _mmseg_beit(sizes: Config, weights: Weights) -> Config:
    return dict(
        type='mmseg.BEiT',
        qv_bias='blocks.0.attn.q_bias' in weights,
        **_mmseg_tokens(sizes, weights),
    )


def _swin(weights: Weights) -> Config:
    """Sizes of a Swin."""
    width, channels, patch, _ = weights['patch_embed.proj.weight'].shape
    tables: dict[int, list[Tensor]] = {}
    for name, tensor in weights.items():
        block = re.fullmatch(r'layers\.(\d+)\.blocks\..*\.relative_position_bias_table', name)
        if block:
            tables.setdefault(int(block[1]), []).append(tensor)
    if not tables:
        raise CheckpointError('a Swin without tables of relative positions: the file is incomplete')
    stages = [tables[stage] for stage in sorted(tables)]
    return {
        'embed_dims': width,
        'depths': [len(stage) for stage in stages],
        'num_heads': [stage[0].shape[1] for stage in stages],
        'window_size': (isqrt(stages[0][0].shape[0]) + 1) // 2,
        'patch_size': patch,
        'in_channels': channels,
    }


def _mmpretrain_swin(sizes: Config, weights: Weights) -> Config:
    arch = {key: sizes.pop(key) for key in ('embed_dims', 'depths', 'num_heads')}
    last = len(arch['depths']) - 1
    return dict(type='mmpretrain.SwinTransformer', arch=arch, out_indices=(last,), **sizes)


def _mmseg_swin(sizes: Config, weights: Weights) -> Config:
    stages = len(sizes['depths'])
    return dict(
        type='mmseg.SwinTransformer',
        strides=(sizes['patch_size'], *[2] * (stages - 1)),
        out_indices=tuple(range(stages)),
        **sizes,
    )


CONFIGS: dict[tuple[str, str], Callable[[Config, Weights], Config]] = {
    ('mmpretrain', 'vit'): _mmpretrain_vit,
    ('mmpretrain', 'beit'): _mmpretrain_beit,
    ('mmpretrain', 'swin'): _mmpretrain_swin,
    ('mmseg', 'vit'): _mmseg_vit,
    ('mmseg', 'beit'): _mmseg_beit,
    ('mmseg', 'swin'): _mmseg_swin,
}
