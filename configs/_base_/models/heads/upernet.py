"""UPerNet on four feature maps of a plain transformer, made a pyramid at 4, 2, 1 and 1/2 times.

Neck and heads are those of mmseg's BEiT configs, with 512 channels. All maps are normalised, as in
DINOv2's heads: hence the backbone's type. A config adds ``out_indices`` and the width of the maps.
Batch norm needs two images a step; several GPUs with few images each may want ``SyncBN``.
"""

norm_cfg = dict(type='BN', requires_grad=True)
upernet = dict(
    backbone=dict(type='cdra_mm.mm.backbones.MultiLayerViT'),
    neck=dict(type='Feature2Pyramid', rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(
        type='UPerHead',
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
)
