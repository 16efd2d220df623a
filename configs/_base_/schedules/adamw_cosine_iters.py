"""AdamW with a cosine to zero over a short run of ``train_cfg.max_iters`` iterations.

Neither scheduler names its end: mmengine fills in ``max_iters``, so changing that one number
stretches the cosine with it. The warm-up multiplies the cosine.
"""

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=0),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=500)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
