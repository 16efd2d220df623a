"""ADE20K (ade20k.py) squashed to 490 x 490 pixels (35 patches of 14)."""

_base_ = ['./ade20k.py', '../pipelines/squash_490.py']

train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
