"""DINOv2's linear head on four feature maps, concatenated.

It expects every map to be normalised, which mmpretrain's ViT does to the last alone: hence the
backbone's type, and the layers, the last four, as DINOv2 takes them. A config adds ``in_channels``,
one a map.
"""

_base_ = './linear.py'

linear4 = dict(
    backbone=dict(type='cdra_mm.mm.backbones.MultiLayerViT', out_indices=[-4, -3, -2, -1]),
    decode_head=dict(_base_.linear, in_index=[0, 1, 2, 3], input_transform='resize_concat'),
)
