"""DINOv2 ViT-g/14 without a head.

Weights: the address below, or a local copy in ``CDRA_DINOV2_GIANT``.
"""

_base_ = './dinov2.py'

embed_dims = 1536
# The last layer of each quarter of the depth.
quarters = [9, 19, 29, 39]
model = dict(
    backbone=dict(
        arch='dinov2-giant',
        layer_cfgs=dict(ffn_type='swiglu_fused'),
        init_cfg=dict(
            checkpoint='{{$CDRA_DINOV2_GIANT:https://download.openmmlab.com/mmpretrain/v1.0/dinov2/vit-giant-p14_dinov2-pre_3rdparty_20230426-2934a630.pth}}',  # noqa: E501
        ),
    ),
)
