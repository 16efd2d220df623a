"""DINOv2 ViT-B/14 without a head.

Weights: the address below, or a local copy in ``CDRA_DINOV2_BASE``.
"""

_base_ = './dinov2.py'

embed_dims = 768
# The last layer of each quarter of the depth.
quarters = [2, 5, 8, 11]
model = dict(
    backbone=dict(
        # mmpretrain names no 'dinov2-base': it is 'base' with layer scale.
        arch='base',
        init_cfg=dict(
            checkpoint='{{$CDRA_DINOV2_BASE:https://download.openmmlab.com/mmpretrain/v1.0/dinov2/vit-base-p14_dinov2-pre_3rdparty_20230426-ba246503.pth}}',  # noqa: E501
        ),
    ),
)
