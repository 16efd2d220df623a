"""CDRA of ViT-B/16 on Stanford Dogs (FGVC).

Command: python tools/train.py configs/fgvc/stanford_dogs.py
    For the figure to report: once more with --final.
Data: CDRA_FGVC_ROOT/StanfordDogs, see configs/_base_/datasets/fgvc.py.
Memory: not measured.
Result: not yet measured; 89.8 in the paper (Table 2).
"""

_base_ = '../_base_/recipes/cdra_vit_base_fgvc.py'

model = dict(head=dict(num_classes=120))
train_dataloader = val_dataloader = test_dataloader = dict(
    dataset=dict(data_root=f'{_base_.fgvc_root}/StanfordDogs')
)
