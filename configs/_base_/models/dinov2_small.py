"""DINOv2 ViT-S/14 without a head.

Weights: the address below, or a local copy in ``CDRA_DINOV2_SMALL``.
"""

_base_ = './dinov2.py'

embed_dims = 384
# The last layer of each quarter of the depth.
quarters = [2, 5, 8, 11]
model = dict(
    backbone=dict(
        # mmpretrain's plain 'small' is another, wider network.
        arch='dinov2-small',
        init_cfg=dict(
            checkpoint='{{$CDRA_DINOV2_SMALL:https://download.openmmlab.com/mmpretrain/v1.0/dinov2/vit-small-p14_dinov2-pre_3rdparty_20230426-5641ca5a.pth}}',  # noqa: E501
        ),
    ),
)
