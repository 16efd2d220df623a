"""FGVC as SPT reads it: images resized to 256 x 256, a random crop of 224 and a flip in training.

Testing takes the crop in the centre. So SPT's ``lib/datasets.py`` does it, with a bicubic resize
that does not keep the ratio; VPT's ``src/data/transforms.py`` keeps it, and is otherwise the same.
Folder of all sets: ``CDRA_FGVC_ROOT``, or the path below; ``python tools/prepare_data.py cub
data/fgvc`` prepares one. A config adds its set to the three loaders:
``dataset=dict(data_root=f'{_base_.fgvc_root}/CUB_200_2011')``. Settings are chosen with train and
val; the figure to report is one test of a model trained on both: ``tools/train.py CONFIG --final``
puts ``final_run`` over the config. So do GPS and RLRR; SPT and VPT test a model trained on train
alone, which is ``--final --cfg-options train_dataloader.dataset.split=train``. Without our tools
``--final`` is ``--cfg-options train_dataloader.dataset.split=trainval
val_dataloader.dataset.split=test train_cfg.val_interval=100000``.
"""

fgvc_root = '{{$CDRA_FGVC_ROOT:data/fgvc}}'

# Pillow smooths when it shrinks, as torchvision's resize does; OpenCV's bicubic does not.
resize = dict(
    type='Resize', scale=(256, 256), keep_ratio=False, backend='pillow', interpolation='bicubic'
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='RandomCrop', crop_size=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='cdra_mm.mm.datasets.FGVC', split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='cdra_mm.mm.datasets.FGVC', split='val', pipeline=test_pipeline),
)
test_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='cdra_mm.mm.datasets.FGVC', split='test', pipeline=test_pipeline),
)

final_run = dict(
    train_dataloader=dict(dataset=dict(split='trainval')),
    val_dataloader=dict(dataset=dict(split='test')),
    # Longer than any run: only the last epoch is evaluated.
    train_cfg=dict(val_interval=100000),
)
