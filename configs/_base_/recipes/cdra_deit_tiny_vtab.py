"""CDRA of DeiT-Tiny on a task in VTAB-1k's layout; a config adds the task.

Rates: 1e-3 for all. On short schedules with the head at 1e-2 the backbone's best were 3e-3 to 2e-2
(docs/results.md); lower it first if CDRA is below the head alone.
"""

_base_ = [
    '../models/deit_tiny_cls.py',
    '../datasets/vtab.py',
    '../schedules/adamw_cosine_100e.py',
    '../default_runtime_cls.py',
]

default_hooks = dict(
    # The paper's mean share on VTAB-1k (Table 1).
    cdra=dict(type='cdra_mm.CDRAHook', method=dict(type='cdra'), budget_percent=0.49),
)
