"""The figure to report for deit_tiny_caltech101: train on all 1000 images, test once, at the end.

Command: python tools/train.py configs/cdra/deit_tiny_caltech101_final.py
Memory: not measured. Time and result: not yet measured.
"""

_base_ = './deit_tiny_caltech101.py'

train_dataloader = dict(dataset=dict(split='train800val200'))
val_dataloader = dict(dataset=dict(split='test'))
# Longer than any run: only the last epoch is evaluated.
train_cfg = dict(val_interval=100000)
