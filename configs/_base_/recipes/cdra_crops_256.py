"""CDRA on crops of 256 pixels for 1000 iterations; a config adds the model and the data.

Rates: head 1e-3, backbone 5e-3: microscopy after 200 iterations 41.7 mIoU on val, at 1e-3 40.9, at
1e-4 40.0 (one seed, DeiT-Tiny). Lower it first if CDRA is below the head alone.
"""

_base_ = ['../schedules/adamw_cosine_iters.py', '../default_runtime_seg.py']

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=5.0))))
default_hooks = dict(
    checkpoint=dict(interval=500),
    cdra=dict(type='cdra_mm.CDRAHook', method=dict(type='cdra'), budget_percent=0.5),
)
