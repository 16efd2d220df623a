"""DINOv2 ViT-L/14 with four registers, through timm, under DINOv2's linear segmentation head.

Weights: the publisher's address below, or a local copy in ``CDRA_DINOV2_REG_LARGE`` (a timm
``.safetensors`` does as well).
"""

_base_ = ['./segmentor_518.py', './heads/linear.py']

model = dict(
    backbone=dict(
        type='cdra_mm.mm.backbones.TimmViT',
        model_name='vit_large_patch14_reg4_dinov2.lvd142m',
        img_size=518,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$CDRA_DINOV2_REG_LARGE:https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth}}',  # noqa: E501
        ),
    ),
    decode_head=dict(_base_.linear, in_channels=1024),
)
