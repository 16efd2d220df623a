"""CDRA on CamVid for 1000 iterations, label 11 ignored; a config adds the model.

The head or heads ignore label 11 too: ``ignore_index=_base_.ignore_index``.

Rates: head 1e-3, backbone 1e-4, which was chosen on damaged weights. On short schedules with the
head at 1e-2 the backbone's best on healthy ones were 3e-3 to 2e-2 (docs/results.md); lower it first
if CDRA is below the head alone.
"""

_base_ = [
    '../datasets/camvid.py',
    '../schedules/adamw_cosine_iters.py',
    '../default_runtime_seg.py',
]

val_evaluator = dict(ignore_index=_base_.ignore_index)
test_evaluator = dict(ignore_index=_base_.ignore_index)
# At the head's rate a backbone of damaged weights, with activations in the hundreds, forgets.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
default_hooks = dict(
    checkpoint=dict(interval=500),
    cdra=dict(type='cdra_mm.CDRAHook', method=dict(type='cdra'), budget_percent=0.5),
)
