"""ADE20K, 150 classes, 20,210 training and 2000 validation images.

Folder: ``CDRA_ADE20K_ROOT``, or the path below, holding ``images`` and ``annotations`` with
``training`` and ``validation`` each. ``python tools/prepare_data.py ade20k data/ade`` makes it.
Label 0 (other objects) is no class: mmseg's data set leaves it out. A config adds
the pipelines.
"""

data_root = '{{$CDRA_ADE20K_ROOT:data/ade/ADEChallengeData2016}}'

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
    ),
)
# ADE20K publishes no labels of its test split: validation is what everyone reports.
test_dataloader = val_dataloader
