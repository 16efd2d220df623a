"""DINOv2 ViT-L/14 without a head.

Weights: the address below, or a local copy in ``CDRA_DINOV2_LARGE``.
"""

_base_ = './dinov2.py'

embed_dims = 1024
# The last layer of each quarter of the depth.
quarters = [5, 11, 17, 23]
model = dict(
    backbone=dict(
        # mmpretrain names no 'dinov2-large': it is 'large' with layer scale.
        arch='large',
        init_cfg=dict(
            checkpoint='{{$CDRA_DINOV2_LARGE:https://download.openmmlab.com/mmpretrain/v1.0/dinov2/vit-large-p14_dinov2-pre_3rdparty_20230426-f3302d9e.pth}}',  # noqa: E501
        ),
    ),
)
