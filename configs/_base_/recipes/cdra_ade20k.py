"""CDRA on ADE20K for 40,000 iterations; a config adds the model and the data set at its size."""

_base_ = ['../schedules/adamw_cosine_40k.py', '../default_runtime_seg.py']

default_hooks = dict(
    # Table 3's share on ADE20K.
    cdra=dict(type='cdra_mm.CDRAHook', method=dict(type='cdra'), budget_percent=0.82),
)
