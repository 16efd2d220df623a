"""PASCAL VOC 2012 (voc.py) with the additional SBD labels: 10,582 training images.

Beside what voc.py needs: the 9118 SBD labels in ``SegmentationClassAug`` with their list
``ImageSets/Segmentation/aug.txt``, as mmseg's ``voc_aug.py`` converter writes them.
"""

_base_ = './voc.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                _base_.train_dataloader.dataset,
                data_prefix=dict(img_path='JPEGImages', seg_map_path=labels),
                ann_file=f'ImageSets/Segmentation/{names}.txt',
            )
            for labels, names in (('SegmentationClass', 'train'), ('SegmentationClassAug', 'aug'))
        ],
    ),
)
