"""DINOv2 ViT-L/14 with four registers, through timm, under DINOv2's linear segmentation head.

Weights: the publisher's address below, or a local copy in ``CDRA_DINOV2_REG_LARGE`` (a timm
``.safetensors`` or the publisher's ``.pth``).
"""

_base_ = './dinov2_reg_base_linear.py'

model = dict(
    backbone=dict(
        model_name='vit_large_patch14_reg4_dinov2.lvd142m',
        init_cfg=dict(
            checkpoint='{{$CDRA_DINOV2_REG_LARGE:https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth}}',  # noqa: E501
        ),
    ),
    decode_head=dict(in_channels=1024),
)
