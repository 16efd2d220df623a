"""The protocol that the paper's Table 3 follows, on ADE20K; a config adds the model.

The paper states no protocol. That of the repository that it cites (RobvanGastel's
dinov2-finetune, as it was in 2024): AdamW at a constant 3e-4 without warm-up, 12 images a step, the
backbones with registers (``main.py``), 100 epochs (its README).
"""

_base_ = [
    '../datasets/ade20k_490.py',
    '../schedules/adamw_constant_paper.py',
    '../default_runtime_seg.py',
]

train_dataloader = dict(batch_size=12, sampler=dict(type='DefaultSampler'))
default_hooks = dict(
    logger=dict(log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=10),
    # Table 3's share on ADE20K.
    cdra=dict(
        type='cdra_mm.CDRAHook',
        method=dict(type='cdra'),
        allocation='scores',
        budget_percent=0.82,
    ),
)
log_processor = dict(by_epoch=True)
