"""CDRA on the demo data: a small ViT learns to segment digits on a CPU.

Command: ``make demo``, or
    python tools/prepare_data.py demo data/demo
    python tools/train.py configs/cdra/demo.py
Memory: under 2 GB. Time: 3.5 minutes on one CPU core, scoring included. Result: 43.9 mIoU (43.3 to
    45.0 over three seeds), a linear head alone 36.2; see docs/results.md.
Frozen backbone or full fine-tuning for comparison:
    --cfg-options default_hooks.cdra.method.type=linear  (or full)
"""

_base_ = [
    '../_base_/models/vit_tiny32_linear.py',
    '../_base_/datasets/demo.py',
    '../_base_/schedules/adamw_cosine_iters.py',
    '../_base_/default_runtime_seg.py',
]

train_cfg = dict(max_iters=200, val_interval=100)
# So few steps want a higher rate than a long run.
optim_wrapper = dict(optimizer=dict(lr=5e-3))
default_hooks = dict(
    checkpoint=dict(interval=100),
    cdra=dict(type='cdra_mm.CDRAHook', method=dict(type='cdra'), budget_percent=1.0),
)
