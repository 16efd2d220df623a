"""ADE20K (ade20k.py) at 512 pixels (32 patches of 16)."""

_base_ = ['./ade20k.py', '../pipelines/crop_512.py']

train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
