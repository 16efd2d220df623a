"""DINOv2 ViT-B/14 at 518 pixels under DINOv2's linear segmentation head.

Weights: the address below, or a local copy in ``CDRA_DINOV2_BASE``. The checkpoint is mmpretrain's
headless classifier, so its names begin with ``backbone.``.
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
        size=(518, 518),
    ),
    backbone=dict(
        type='mmpretrain.VisionTransformer',
        # mmpretrain names no 'dinov2-base': it is 'base' with layer scale.
        arch='base',
        img_size=518,
        patch_size=14,
        layer_scale_init_value=1e-5,
        out_type='featmap',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$CDRA_DINOV2_BASE:https://download.openmmlab.com/mmpretrain/v1.0/dinov2/vit-base-p14_dinov2-pre_3rdparty_20230426-ba246503.pth}}',  # noqa: E501
            prefix='backbone.',
        ),
    ),
    decode_head=dict(
        type='cdra_mm.mm.heads.LinearBNHead',
        in_channels=768,
        in_index=0,
        num_classes=150,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    # Windows of 37 x 37 patches: no padding, and the position embedding as it was trained.
    test_cfg=dict(mode='slide', crop_size=(518, 518), stride=(345, 345)),
)
