"""CDRA on crops of 256 pixels for 1000 iterations; a config adds the model and the data.

Rates: 1e-3 for all. On short schedules of DeiT-Tiny with the head at 1e-2 the backbone's best were
3e-3 to 2e-2 (docs/results.md); lower it first if CDRA is below the head alone.
"""

_base_ = ['../schedules/adamw_cosine_iters.py', '../default_runtime_seg.py']

default_hooks = dict(
    checkpoint=dict(interval=500),
    cdra=dict(type='cdra_mm.CDRAHook', method=dict(type='cdra'), budget_percent=0.5),
)
