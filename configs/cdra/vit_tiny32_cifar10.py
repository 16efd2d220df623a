"""CDRA of a ViT that ships with the project on 1000 images of CIFAR-10, at their own 32 pixels.

Command: python tools/train.py configs/cdra/vit_tiny32_cifar10.py
    For the figure to report: once more with --final (train on all 1000 images, test at the end).
Data: CDRA_VTAB_ROOT/cifar10 with the four lists of a task: see configs/_base_/datasets/vtab.py.
Memory: 1.0 GB. Result: not yet measured at 100 epochs; docs/results.md has short runs.
"""

_base_ = ['./deit_tiny_cifar10.py', '../_base_/models/vit_tiny32.py']

model = dict(
    backbone=dict(
        _base_.vit_tiny32,
        _delete_=True,
        img_size=32,
        drop_path_rate=0.1,
        out_type='cls_token',
    )
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(pipeline=pipeline))
