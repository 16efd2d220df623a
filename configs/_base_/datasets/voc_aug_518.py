"""PASCAL VOC 2012 with the additional SBD labels, 21 classes, at 518 pixels (37 patches of 14).

Folder: ``CDRA_VOC_ROOT``, or the path below, holding ``JPEGImages``, ``SegmentationClass`` and
``ImageSets/Segmentation`` (``python tools/prepare_data.py voc data`` makes these) and the 9118 SBD
labels in ``SegmentationClassAug`` with their list ``ImageSets/Segmentation/aug.txt``, as mmseg's
``voc_aug.py`` converter writes them.
"""

data_root = '{{$CDRA_VOC_ROOT:data/VOCdevkit/VOC2012}}'
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

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type='PascalVOCDataset',
                data_root=data_root,
                data_prefix=dict(img_path='JPEGImages', seg_map_path=labels),
                ann_file=f'ImageSets/Segmentation/{names}.txt',
                pipeline=train_pipeline,
            )
            for labels, names in (('SegmentationClass', 'train'), ('SegmentationClassAug', 'aug'))
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='PascalVOCDataset',
        data_root=data_root,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ann_file='ImageSets/Segmentation/val.txt',
        pipeline=test_pipeline,
    ),
)
# VOC publishes no labels of its test split: val is what everyone reports.
test_dataloader = val_dataloader
