"""The small ViT of the demo (192 wide, 6 blocks, patch 4) under a linear segmentation head.

Trained at 32 x 32 pixels and run at 64 x 64: the position embedding is resized when the weights
are loaded. Weights: ``CDRA_VIT_TINY32``, or the path below (relative to where the run starts).
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
        size=(64, 64),
    ),
    backbone=dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768),
        img_size=64,
        patch_size=4,
        out_type='featmap',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$CDRA_VIT_TINY32:assets/vit_tiny32_in200.pth}}',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(
        type='cdra_mm.mm.heads.LinearBNHead',
        in_channels=192,
        in_index=0,
        num_classes=11,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
