"""AdamW, 40,000 iterations, 1500 of them warm-up, cosine to zero.

Length, warm-up, learning rate and weight decay are those of DINOv2's own linear evaluation on
ADE20K and VOC; rate and decay are also those of SPT. DINOv2 decays polynomially, the paper by a
cosine. Neither scheduler names its end, which mmengine sets to ``train_cfg.max_iters``.
"""

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1500),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=0),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=4000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
# The rate is for 16 images a step; tools/train.py --auto-scale-lr uses this.
auto_scale_lr = dict(enable=False, base_batch_size=16)
