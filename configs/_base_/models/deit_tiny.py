"""DeiT-Tiny (patch 16) at 224-pixel crops, without a head.

Weights: a timm ``deit_tiny_patch16_224`` state dict as ``.safetensors``, in ``CDRA_DEIT_TINY`` or
at the path below. Images are padded to whole patches in testing.
"""

_base_ = './segmentor.py'

model = dict(
    data_preprocessor=dict(size=(224, 224), test_cfg=dict(size_divisor=16)),
    backbone=dict(
        type='mmpretrain.VisionTransformer',
        arch='deit-tiny',
        img_size=224,
        patch_size=16,
        out_type='featmap',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$CDRA_DEIT_TINY:checkpoints/deit_tiny_in1k_timm.safetensors}}',
        ),
    ),
)
