"""DINOv2's linear head: batch norm and a 1x1 convolution on the last feature map.

A config adds ``in_channels`` and its classes:
``decode_head=dict(_base_.linear, in_channels=768)``.
"""

linear = dict(
    type='cdra_mm.mm.heads.LinearBNHead',
    in_index=0,
    num_classes=150,
    align_corners=False,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
)
