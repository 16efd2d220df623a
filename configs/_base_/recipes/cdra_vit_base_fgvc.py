"""CDRA of ViT-B/16 on an FGVC set, trained as SPT trains; a config adds the set.

The schedule is that of VTAB-1k with 32 images a step.
"""

_base_ = [
    '../models/vit_base_in21k_cls.py',
    '../datasets/fgvc.py',
    '../schedules/adamw_cosine_100e.py',
    '../default_runtime_cls.py',
]

auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(
    # The paper's mean share on FGVC (Table 2).
    cdra=dict(type='cdra_mm.CDRAHook', method=dict(type='cdra'), budget_percent=0.86),
)
