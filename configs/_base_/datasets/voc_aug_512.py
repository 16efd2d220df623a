"""PASCAL VOC 2012 with SBD labels (voc_aug.py) at 512 pixels (32 patches of 16)."""

_base_ = ['./voc_aug.py', '../pipelines/crop_512.py']

train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(part, pipeline=_base_.train_pipeline)
            for part in _base_.train_dataloader.dataset.datasets
        ],
    ),
)
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
