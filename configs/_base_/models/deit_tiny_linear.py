"""DeiT-Tiny under a linear segmentation head, at 224-pixel crops."""

_base_ = ['./deit_tiny.py', './heads/linear.py']

model = dict(decode_head=dict(_base_.linear, in_channels=192))
