"""What DINOv2's four sizes share in mmpretrain's ViT: patch 14, 518 pixels, layer scale.

The checkpoints are mmpretrain's headless classifiers, so their names begin with ``backbone.``.
"""

_base_ = './segmentor_518.py'

model = dict(
    backbone=dict(
        type='mmpretrain.VisionTransformer',
        img_size=518,
        patch_size=14,
        layer_scale_init_value=1e-5,
        out_type='featmap',
        init_cfg=dict(type='Pretrained', prefix='backbone.'),
    ),
)
