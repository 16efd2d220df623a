"""ADE20K (ade20k.py) at 518 pixels (37 patches of 14)."""

_base_ = ['./ade20k.py', '../pipelines/crop_518.py']

train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
