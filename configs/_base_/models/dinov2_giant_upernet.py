"""DINOv2 ViT-g/14 at 518 pixels under UPerNet."""

_base_ = ['./dinov2_giant.py', './heads/upernet.py']

model = dict(
    backbone=dict(_base_.upernet.backbone, out_indices=_base_.quarters),
    neck=dict(_base_.upernet.neck, embed_dim=_base_.embed_dims),
    decode_head=dict(_base_.upernet.decode_head, in_channels=[_base_.embed_dims] * 4),
    auxiliary_head=dict(_base_.upernet.auxiliary_head, in_channels=_base_.embed_dims),
)
