"""CDRA of DeiT-Tiny on VTAB-1k Caltech101: train on train800, choose by val200.

Command: python tools/train.py configs/cdra/deit_tiny_caltech101.py
The figure to report comes from deit_tiny_caltech101_final.py.
Data: CDRA_VTAB_ROOT, see configs/_base_/datasets/vtab.py.
Memory: not measured. Time and result: not yet measured. A norm and a linear head on frozen
    features give about 55 percent on val200 (100 epochs, one seed, no drop-path).
Frozen backbone or full fine-tuning for comparison:
    --cfg-options default_hooks.cdra.method.type=linear  (or full)
"""

_base_ = [
    '../_base_/models/deit_tiny_cls.py',
    '../_base_/datasets/vtab.py',
    '../_base_/schedules/adamw_cosine_100e.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(head=dict(num_classes=102))
train_dataloader = val_dataloader = test_dataloader = dict(
    dataset=dict(data_root=f'{_base_.vtab_root}/caltech101', num_classes=102)
)
default_hooks = dict(
    # The paper's mean share on VTAB-1k (Table 1).
    cdra=dict(type='cdra_mm.CDRAHook', method=dict(type='cdra'), budget_percent=0.49),
)
