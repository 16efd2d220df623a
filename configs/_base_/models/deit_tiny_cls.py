"""DeiT-Tiny at 224 pixels under a linear classifier, drop-path 0.1 as SPT trains.

Weights: a timm ``deit_tiny_patch16_224`` state dict as ``.safetensors``, in ``CDRA_DEIT_TINY`` or
at the path below. mmpretrain's ``LinearClsHead`` starts with small random weights; its
``VisionTransformerClsHead`` starts with zeros, which leave the backbone without a gradient.
"""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='VisionTransformer',
        arch='deit-tiny',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        out_type='cls_token',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$CDRA_DEIT_TINY:checkpoints/deit_tiny_in1k_timm.safetensors}}',
        ),
    ),
    # Class tokens of damaged weights reach 200: with a norm the head's rate suits those too.
    neck=dict(type='ClsBatchNormNeck', input_features=192),
    head=dict(
        type='LinearClsHead',
        in_channels=192,
        num_classes=1000,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
