"""CDRA of DeiT-Tiny under UPerNet on CamVid, beside the linear head of deit_tiny_camvid.py.

Command: python tools/train.py configs/cdra/deit_tiny_upernet_camvid.py
Data: CDRA_CAMVID_ROOT, see configs/_base_/datasets/camvid.py.
Memory: not measured. Time: 20 minutes on one CPU core with train_cfg.max_iters=200. Result:
    38.8 mIoU on val, 36.3 on test then, heads alone 39.3, 35.5, on damaged weights with
    allocation='scores' (one seed, docs/results.md); healthy weights, the default's allocation and
    1000 iterations unmeasured.
Rates: on short schedules with the head at 1e-2 the backbone's best were 3e-3 to 2e-2
    (docs/results.md); lower it first if CDRA is below the head alone.
Frozen backbone or full fine-tuning for comparison:
    --cfg-options default_hooks.cdra.method.type=linear  (or full)
"""

_base_ = ['../_base_/models/deit_tiny_upernet.py', '../_base_/recipes/cdra_camvid.py']

model = dict(
    data_preprocessor=dict(seg_pad_val=_base_.ignore_index),
    decode_head=dict(num_classes=11, ignore_index=_base_.ignore_index),
    auxiliary_head=dict(num_classes=11, ignore_index=_base_.ignore_index),
)
