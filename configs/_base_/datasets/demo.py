"""The demo data: handwritten digits over photographs, 64 x 64 pixels, 11 classes.

Folder: ``CDRA_DEMO_ROOT``, or the path below, holding ``images`` and ``annotations`` with
``training`` and ``validation`` each. ``python tools/prepare_data.py demo data/demo`` makes it.
No flips: a mirrored digit is another sign.
"""

data_root = '{{$CDRA_DEMO_ROOT:data/demo}}'
prepare_data = ['demo', data_root]  # for `cdra data prepare`
metainfo = dict(
    classes=('photo', *map(str, range(10))),
    palette=[
        [40, 40, 40], [242, 61, 61], [178, 116, 45], [206, 242, 61], [81, 178, 45], [61, 242, 133],
        [45, 178, 178], [61, 133, 242], [81, 45, 178], [206, 61, 242], [178, 45, 116],
    ],
)  # fmt: skip

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

train_dataloader = dict(
    batch_size=16,
    # Images this small are read faster than they are sent between processes.
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        metainfo=metainfo,
        pipeline=pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        metainfo=metainfo,
        pipeline=pipeline,
    ),
)
test_dataloader = val_dataloader
