"""CDRA on crops of 256 pixels for 1000 iterations; a config adds the model and the data."""

_base_ = ['../schedules/adamw_cosine_iters.py', '../default_runtime_seg.py']

default_hooks = dict(
    checkpoint=dict(interval=500),
    cdra=dict(type='cdra_mm.CDRAHook', method=dict(type='cdra'), budget_percent=0.5),
)
