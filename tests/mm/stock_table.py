"""The stock configs that are driven from the first line to a merged checkpoint."""

from __future__ import annotations

from typing import Any

from . import toy
from .stock import SIZE, WIDTH, Stock

QKV = frozenset('qkv')


def _backbone(**settings: Any) -> dict[str, Any]:
    return {f'model.backbone.{key}': value for key, value in settings.items()}


def _heads(**settings: Any) -> dict[str, Any]:
    """Settings of decode and auxiliary head; a key names the head and the setting."""
    return {f'model.{key.replace("__", ".")}': value for key, value in settings.items()}


VIT = _backbone(img_size=(SIZE, SIZE), embed_dims=WIDTH, num_heads=2)
FOUR = [WIDTH] * 4
UPERNET = _heads(
    decode_head__in_channels=FOUR,
    decode_head__channels=16,
    auxiliary_head__in_channels=WIDTH,
    auxiliary_head__channels=16,
)
SHALLOW = _backbone(num_layers=4, out_indices=(0, 1, 2, 3))
SMALL_VIT = {
    'model.backbone.arch': dict(toy.ARCH, _delete_=True),
    'model.backbone.img_size': toy.SIZE,
    'model.head.in_channels': toy.ARCH['embed_dims'],
}

BEIT = {**VIT, **UPERNET, **SHALLOW, 'model.neck.embed_dim': WIDTH}
WIDTHS = [16, 32, 64, 128]
SMALL_SWIN = _backbone(embed_dims=16, depths=[2, 1, 2, 1], num_heads=[1, 2, 4, 8])
SETR = {
    **VIT,
    **SHALLOW,
    **_heads(decode_head__in_channels=WIDTH, decode_head__channels=16),
    **{f'model.auxiliary_head.{i}.in_channels': WIDTH for i in range(3)},
    **{f'model.auxiliary_head.{i}.channels': 16 for i in range(3)},
}
SWIN_CLASSIFIER = {
    'model.backbone.arch': dict(
        embed_dims=16, depths=[2, 1, 2, 1], num_heads=[1, 2, 4, 8], _delete_=True
    ),
    'model.head.in_channels': 128,
}
PRETRAINED = 'model.backbone.init_cfg.checkpoint'

STOCK = (
    # mmseg's own ViT: nn.MultiheadAttention, whose weights are used without a module call.
    Stock(
        'mmseg', 'vit/vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py',
        {**VIT, **UPERNET, **SHALLOW, 'model.neck.in_channels': FOUR,
         'model.neck.out_channels': WIDTH},
        base='model.pretrained', roles=QKV,
    ),
    Stock(
        'mmseg', 'vit/vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py',
        {**VIT, **UPERNET, **SHALLOW}, base='model.pretrained', roles=QKV,
    ),
    # Relative positions, a fused qkv with separate biases, rates that fall with depth.
    Stock(
        'mmseg', 'beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py', BEIT,
        base='model.pretrained', roles=QKV,
    ),
    Stock(
        'mmseg', 'mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py', BEIT,
        base='model.pretrained', roles=QKV,
    ),
    # Windows: a block sees B x windows, and four widths.
    Stock(
        'mmseg', 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        {**SMALL_SWIN, **_heads(decode_head__in_channels=WIDTHS, decode_head__channels=16,
                                auxiliary_head__in_channels=64, auxiliary_head__channels=16)},
        base=PRETRAINED, roles=QKV,
    ),
    # Three auxiliary heads, each with a weight in the loss; SGD.
    Stock(
        'mmseg', 'setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py', SETR,
        base=PRETRAINED, roles=QKV,
    ),
    # A head with transformer layers of its own, which are trained whole.
    Stock(
        'mmseg', 'segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py',
        {**VIT, **_backbone(num_layers=3),
         **_heads(decode_head__in_channels=WIDTH, decode_head__channels=WIDTH,
                  decode_head__embed_dims=WIDTH, decode_head__num_heads=2)},
        base='model.pretrained', roles=QKV,
    ),
    # From random weights: the frozen base is stored. Mixup, a head with a hidden layer.
    Stock('mmpretrain', 'vision_transformer/vit-base-p16_64xb64_in1k.py',
          {**SMALL_VIT, 'model.head.hidden_dim': 48}),
    # Mixup and cutmix, label smoothing, a head that starts at zero.
    Stock('mmpretrain', 'deit/deit-tiny_4xb256_in1k.py', SMALL_VIT),
    # Averaged weights, a pretrained file with a prefix.
    Stock('mmpretrain', 'mocov3/benchmarks/vit-base-p16_8xb64-coslr-150e_in1k.py', SMALL_VIT,
          base=PRETRAINED, prefix='backbone.', roles=QKV),
    Stock('mmpretrain', 'swin_transformer/swin-tiny_16xb64_in1k.py',
          {**SWIN_CLASSIFIER, 'model.backbone.img_size': 224}),
    Stock('mmpretrain', 'beit/benchmarks/beit-base-p16_8xb128-coslr-100e_in1k.py', SMALL_VIT,
          base=PRETRAINED, prefix='backbone.', roles=QKV),
    Stock('mmpretrain', 'mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py', SMALL_VIT,
          base=PRETRAINED, prefix='backbone.', roles=QKV),
)  # fmt: skip

# Configs that cannot be adapted, and what the error says.
NONE = 'no adaptable weight in '
REFUSED = (
    (
        Stock('mmpretrain', 'convnext/convnext-tiny_32xb128_in1k.py', {
            'model.backbone.arch': dict(depths=[1] * 4, channels=[8, 8, 8, 8], _delete_=True),
            'model.head.in_channels': 8,
        }),
        NONE + 'ConvNeXt',
    ),
    # An adaptation of its own around the ViT.
    (
        Stock('mmpretrain', 'vision_transformer/vit-base-p16_8xb64-lora_in1k-384px.py', {
            'model.backbone.module.arch': dict(toy.ARCH, _delete_=True),
            'model.backbone.module.img_size': toy.SIZE,
            'model.backbone.module.init_cfg': None,
            'model.backbone.rank': 2,
            'model.head.in_channels': toy.ARCH['embed_dims'],
        }),
        NONE + 'LoRAModel',
    ),
    # Pretraining: the loss runs the backbone on masked images.
    (
        Stock('mmpretrain', 'mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py', {
            'model.backbone.arch': dict(toy.ARCH, _delete_=True),
            'model.backbone.img_size': SIZE,
            **{f'model.neck.{key}': WIDTH for key in ('embed_dim', 'decoder_embed_dim')},
            'model.neck.decoder_depth': 1,
            'model.neck.decoder_num_heads': 2,
            # AmpOptimWrapper asks for a GPU before anything of ours runs.
            'optim_wrapper': dict(
                type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2), _delete_=True
            ),
        }),
        'the loss of MAE runs the backbone itself',
    ),
)  # fmt: skip
