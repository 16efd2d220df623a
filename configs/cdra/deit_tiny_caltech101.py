"""CDRA of DeiT-Tiny on VTAB-1k Caltech101: train on train800, choose by val200.

Command: python tools/train.py configs/cdra/deit_tiny_caltech101.py
    For the figure to report: once more with --final (train on all 1000 images, test at the end).
Data: CDRA_VTAB_ROOT/caltech101, see configs/_base_/datasets/vtab.py.
Memory: 3.5 GB. Time: 20 minutes on one busy CPU core with --final and train_cfg.max_epochs=10.
Result: 63.6 top-1 then, on damaged weights with allocation='scores' at the rates docs/results.md
    states (one seed); healthy weights, the default's allocation and the 100 epochs are not yet
    measured. A norm and a linear head on the damaged weights' frozen features give about 55 percent
    on val200 (100 epochs, one seed, no drop-path).
Rates: on short schedules with the head at 1e-2 the backbone's best were 3e-3 to 2e-2
    (docs/results.md); lower it first if CDRA is below the head alone.
Frozen backbone or full fine-tuning for comparison:
    --cfg-options default_hooks.cdra.method.type=linear  (or full)
"""

_base_ = '../_base_/recipes/cdra_deit_tiny_vtab.py'

model = dict(head=dict(num_classes=102))
train_dataloader = val_dataloader = test_dataloader = dict(
    dataset=dict(data_root=f'{_base_.vtab_root}/caltech101')
)
