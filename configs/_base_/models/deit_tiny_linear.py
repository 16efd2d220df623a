"""DeiT-Tiny (patch 16) under a linear segmentation head, at 224-pixel crops.

Weights: a timm ``deit_tiny_patch16_224`` state dict as ``.safetensors``, in ``CDRA_DEIT_TINY`` or
at the path below. Images are padded to whole patches in testing.
"""

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
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
    decode_head=dict(
        type='cdra_mm.mm.heads.LinearBNHead',
        in_channels=192,
        in_index=0,
        num_classes=150,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
