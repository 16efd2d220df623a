"""DINOv3 ViT-L/16 at 512 pixels, through timm, under DINOv2's linear segmentation head.

Weights: as for ViT-B/16 (dinov3_base_linear.py, with what to know of the licence), from timm's
``vit_large_patch16_dinov3.lvd1689m``, in ``CDRA_DINOV3_LARGE`` or at the path below.
"""

_base_ = './dinov3_base_linear.py'

model = dict(
    backbone=dict(
        model_name='vit_large_patch16_dinov3.lvd1689m',
        init_cfg=dict(
            checkpoint='{{$CDRA_DINOV3_LARGE:checkpoints/vit_large_patch16_dinov3.lvd1689m.safetensors}}',
        ),
    ),
    decode_head=dict(in_channels=1024),
)
