"""DINOv2 ViT-B/14 at 518 pixels under DINOv2's linear segmentation head.

Weights: the address below, or a local copy in ``CDRA_DINOV2_BASE``. The checkpoint is mmpretrain's
headless classifier, so its names begin with ``backbone.``.
"""

_base_ = './linear_segmentor.py'

model = dict(
    data_preprocessor=dict(
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
    decode_head=dict(in_channels=768, num_classes=150),
    # Windows of 37 x 37 patches: no padding, and the position embedding as it was trained.
    test_cfg=dict(mode='slide', crop_size=(518, 518), stride=(345, 345)),
)
