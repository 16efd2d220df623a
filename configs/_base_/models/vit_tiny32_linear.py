"""The small ViT of the demo (192 wide, 6 blocks, patch 4) under a linear segmentation head.

Trained at 32 x 32 pixels and run at 64 x 64: the position embedding is resized when the weights
are loaded. Weights: ``CDRA_VIT_TINY32``, or the path below (relative to where the run starts).
"""

_base_ = ['./segmentor.py', './heads/linear.py']

model = dict(
    data_preprocessor=dict(size=(64, 64)),
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
    decode_head=dict(_base_.linear, in_channels=192, num_classes=11),
)
