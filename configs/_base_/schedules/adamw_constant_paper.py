"""AdamW 3e-4 throughout, no warm-up, weight decay 1e-2, 100 epochs.

The schedule of the repository that the paper cites for its dense prediction (RobvanGastel's
dinov2-finetune: ``main.py`` has no scheduler and leaves AdamW's weight decay as PyTorch has it, the
README states 100 epochs); see recipes/paper_*.py.
"""

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=3e-4, weight_decay=1e-2))
param_scheduler = []
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=12)
