"""CDRA of DeiT-Tiny with a linear head on electron microscopy of neural tissue.

Command: python tools/train.py configs/cdra/deit_tiny_vnc_em.py
Data: CDRA_VNC_EM_ROOT, see configs/_base_/datasets/vnc_em.py.
Memory: 1.5 GB. Result: not yet measured at 1000 iterations.
Rates: see the recipe; on short schedules with the head at 1e-2 the best were 3e-3 to 2e-2
    (docs/results.md); lower it first if CDRA is below the head alone.
Frozen backbone or full fine-tuning for comparison:
    --cfg-options default_hooks.cdra.method.type=linear  (or full)
"""

_base_ = [
    '../_base_/models/deit_tiny_linear.py',
    '../_base_/datasets/vnc_em.py',
    '../_base_/recipes/cdra_crops_256.py',
]

model = dict(decode_head=dict(num_classes=5))
