"""ViT-B/16 at 224 pixels, pretrained on ImageNet-21k, under a linear classifier.

Weights: Google's ``ViT-B_16.npz`` (what SPT and the paper use), from the address below, or a local
copy in ``CDRA_VIT_B16``. Images are normalised with ImageNet's mean and deviation, as SPT and VPT
do it with these weights, so that figures compare with theirs; the weights were trained with 127.5
for both: ``--cfg-options model.data_preprocessor.mean=[127.5,127.5,127.5]`` and ``std`` likewise.
Drop-path 0.1 as SPT trains. mmpretrain's ``LinearClsHead`` starts with small random weights; its
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
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        out_type='cls_token',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$CDRA_VIT_B16:https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz}}',  # noqa: E501
        ),
    ),
    head=dict(
        type='LinearClsHead',
        in_channels=768,
        num_classes=1000,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
