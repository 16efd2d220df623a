"""DINOv2 ViT-B/14 at 518 pixels under DINOv2's linear segmentation head on four layers."""

_base_ = ['./dinov2_base.py', './heads/linear4.py']

model = dict(
    backbone=_base_.linear4.backbone,
    decode_head=dict(_base_.linear4.decode_head, in_channels=[_base_.embed_dims] * 4),
)
