"""DeiT-Tiny (patch 16) under a linear segmentation head, at 224-pixel crops.

Weights: a timm ``deit_tiny_patch16_224`` state dict as ``.safetensors``, in ``CDRA_DEIT_TINY`` or
at the path below. Images are padded to whole patches in testing.
"""

_base_ = './linear_segmentor.py'

model = dict(
    data_preprocessor=dict(
        size=(224, 224),
        test_cfg=dict(size_divisor=16),
    ),
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
    decode_head=dict(in_channels=192, num_classes=150),
)
