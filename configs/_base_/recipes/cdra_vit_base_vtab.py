"""CDRA of ViT-B/16 on a VTAB-1k task, trained as SPT trains; a config adds the task.

SPT's ``configs/vtab_supervised_spt_lora.sh``: AdamW 1e-3, weight decay 1e-4, batch 64, 100 epochs,
images resized to 224 x 224, no augmentation.
"""

_base_ = [
    '../models/vit_base_in21k_cls.py',
    '../datasets/vtab.py',
    '../schedules/adamw_cosine_100e.py',
    '../default_runtime_cls.py',
]

default_hooks = dict(
    # The paper's mean share on VTAB-1k (Table 1).
    cdra=dict(type='cdra_mm.CDRAHook', method=dict(type='cdra'), budget_percent=0.49),
)
