"""CDRA of ViT-B/16 on VTAB-1k Oxford-IIIT Pets.

Command: python tools/train.py configs/vtab/oxford_iiit_pet.py
    For the figure to report: once more with --final.
Data: CDRA_VTAB_ROOT/oxford_iiit_pet, see configs/_base_/datasets/vtab.py.
Memory: 8.3 GB in the paper (Table 8), not measured here.
Result: not yet measured; 91.6 in the paper (Table 1).
"""

_base_ = '../_base_/recipes/cdra_vit_base_vtab.py'

model = dict(head=dict(num_classes=37))
train_dataloader = val_dataloader = test_dataloader = dict(
    dataset=dict(data_root=f'{_base_.vtab_root}/oxford_iiit_pet')
)
