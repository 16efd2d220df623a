"""VTAB-1k as SPT and its successors read it: images resized to 224 x 224, no augmentation.

Folder of all tasks: ``CDRA_VTAB_ROOT``, or the path below; ``python tools/prepare_data.py vtab
data/vtab-1k`` prepares it. A config adds its task to the three loaders:
``dataset=dict(data_root=f'{_base_.vtab_root}/caltech101')``. Settings are chosen with train800 and
val200; the figure to report is one test of a model trained on all 1000: ``tools/train.py CONFIG
--final`` puts ``final_run`` over the config. Without our tools the same is
``--cfg-options train_dataloader.dataset.split=train800val200 val_dataloader.dataset.split=test
train_cfg.val_interval=100000``.
"""

vtab_root = '{{$CDRA_VTAB_ROOT:data/vtab-1k}}'

pipeline = [
    dict(type='LoadImageFromFile'),
    # Pillow smooths when it shrinks, as torchvision's resize does; OpenCV's bicubic does not.
    dict(
        type='Resize',
        scale=(224, 224),
        keep_ratio=False,
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='cdra_mm.mm.datasets.VTAB1k', split='train800', pipeline=pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='cdra_mm.mm.datasets.VTAB1k', split='val200', pipeline=pipeline),
)
test_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='cdra_mm.mm.datasets.VTAB1k', split='test', pipeline=pipeline),
)

final_run = dict(
    train_dataloader=dict(dataset=dict(split='train800val200')),
    val_dataloader=dict(dataset=dict(split='test')),
    # Longer than any run: only the last epoch is evaluated.
    train_cfg=dict(val_interval=100000),
)
