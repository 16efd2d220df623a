"""CDRA on crops of 256 pixels for 1000 iterations; a config adds the model and the data.

Rates: head 1e-3, backbone 5e-3: microscopy after 200 iterations 41.7 mIoU on val, at 1e-3 40.9, at
1e-4 40.0 (one seed, DeiT-Tiny, without head_iters). Lower it first if CDRA is below the head
alone. The head is fitted alone for 100 iterations first: after 200 iterations 51.4 and 51.8 mIoU on
the val of microscopy, without 41.7 and 39.7 (two seeds), 63.7 and 51.3 on carrots, 49.6 and 47.3 on
land cover (one seed).
"""

_base_ = ['../schedules/adamw_cosine_iters.py', '../default_runtime_seg.py']

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=5.0))))
default_hooks = dict(
    checkpoint=dict(interval=500),
    cdra=dict(
        type='cdra_mm.CDRAHook',
        method=dict(type='cdra'),
        budget_percent=0.5,
        head_iters=100,
    ),
)
