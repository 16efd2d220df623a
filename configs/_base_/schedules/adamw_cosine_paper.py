"""AdamW 3e-4, weight decay 1e-2, 100 epochs, 20 of them warm-up, cosine to a tenth.

The schedule of the repository that the paper cites for its dense prediction; see recipes/paper_*.py
for what of it is stated where.
"""

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=3e-4, weight_decay=1e-2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, begin=0, end=20),
    dict(type='CosineAnnealingLR', eta_min=3e-5, begin=20, end=100),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=12)
