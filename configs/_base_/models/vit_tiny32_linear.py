"""The small ViT of the demo under a linear segmentation head, at 64 x 64 pixels."""

_base_ = ['./segmentor.py', './heads/linear.py', './vit_tiny32.py']

model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(_base_.vit_tiny32, img_size=64, out_type='featmap'),
    decode_head=dict(_base_.linear, in_channels=192, num_classes=11),
)
