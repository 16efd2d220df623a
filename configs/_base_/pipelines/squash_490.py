"""Whole images, squashed to 490 x 490 pixels (35 patches of 14), without augmentation.

What the repository does whose protocol the paper's Table 3 follows. There the labels are squashed
in testing too; here the scores are enlarged to the labels' own size, as is the custom.
"""

crop_size = (490, 490)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=crop_size, keep_ratio=False),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=crop_size, keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
