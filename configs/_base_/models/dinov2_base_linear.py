"""DINOv2 ViT-B/14 at 518 pixels under DINOv2's linear segmentation head."""

_base_ = ['./dinov2_base.py', './heads/linear.py']

model = dict(decode_head=dict(_base_.linear, in_channels=_base_.embed_dims))
