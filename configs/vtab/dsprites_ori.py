"""CDRA of ViT-B/16 on VTAB-1k dSprites/orientation.

Command: python tools/train.py configs/vtab/dsprites_ori.py
    For the figure to report: once more with --final.
Data: CDRA_VTAB_ROOT/dsprites_ori, see configs/_base_/datasets/vtab.py.
Memory: 8.3 GB in the paper (Table 8), not measured here.
Result: not yet measured; 51.7 in the paper (Table 1).
"""

_base_ = '../_base_/recipes/cdra_vit_base_vtab.py'

model = dict(head=dict(num_classes=16))
train_dataloader = val_dataloader = test_dataloader = dict(
    dataset=dict(data_root=f'{_base_.vtab_root}/dsprites_ori')
)
