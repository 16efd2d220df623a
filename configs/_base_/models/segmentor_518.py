"""A segmentor at 518 pixels, the size that DINOv2's position embedding was trained for."""

_base_ = './segmentor.py'

model = dict(
    data_preprocessor=dict(size=(518, 518)),
    # Windows of 37 x 37 patches of 14: no padding, and the position embedding as it was trained.
    test_cfg=dict(mode='slide', crop_size=(518, 518), stride=(345, 345)),
)
