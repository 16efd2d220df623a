"""DeiT-Tiny under UPerNet of 128 channels, at 224-pixel crops."""

_base_ = ['./deit_tiny.py', './heads/upernet.py']

model = dict(
    backbone=dict(_base_.upernet.backbone, out_indices=[2, 5, 8, 11]),
    neck=dict(_base_.upernet.neck, embed_dim=192),
    decode_head=dict(_base_.upernet.decode_head, in_channels=[192] * 4, channels=128),
    auxiliary_head=dict(_base_.upernet.auxiliary_head, in_channels=192, channels=64),
)
