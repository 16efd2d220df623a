"""CDRA on CamVid for 1000 iterations, label 11 ignored; a config adds the model.

The head or heads ignore label 11 too: ``ignore_index=_base_.ignore_index``.

Rates: head 1e-3, backbone 5e-3: after 200 iterations 40.6 mIoU on val, at 1e-3 and 1e-4 34.2 (one
seed, linear head, not fitted first). Lower it first if CDRA is below the head alone.
"""

_base_ = [
    '../datasets/camvid.py',
    '../schedules/adamw_cosine_iters.py',
    '../default_runtime_seg.py',
]

val_evaluator = dict(ignore_index=_base_.ignore_index)
test_evaluator = dict(ignore_index=_base_.ignore_index)
# Of damaged weights, with activations in the hundreds, 0.1.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=5.0))))
default_hooks = dict(
    checkpoint=dict(interval=500),
    cdra=dict(type='cdra_mm.CDRAHook', method=dict(type='cdra'), budget_percent=0.5),
)
