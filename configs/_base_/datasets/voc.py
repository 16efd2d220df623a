"""PASCAL VOC 2012, 21 classes, 1464 training and 1449 validation images.

Folder: ``CDRA_VOC_ROOT``, or the path below, holding ``JPEGImages``, ``SegmentationClass`` and
``ImageSets/Segmentation``. ``python tools/prepare_data.py voc data`` makes it.
A config adds the pipelines.
"""

data_root = '{{$CDRA_VOC_ROOT:data/VOCdevkit/VOC2012}}'

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='PascalVOCDataset',
        data_root=data_root,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ann_file='ImageSets/Segmentation/train.txt',
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
    ),
)
# VOC publishes no labels of its test split: val is what everyone reports.
test_dataloader = val_dataloader
