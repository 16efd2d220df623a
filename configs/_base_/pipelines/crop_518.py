"""Random 518-pixel crops (37 patches of 14) to train on, short sides of 518 pixels to test on.

Whether label 0 is left out is the data set's own affair (``reduce_zero_label``).
"""

crop_size = (518, 518)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2072, 518), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2072, 518), keep_ratio=True),
    # After Resize: the labels keep their own size.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
