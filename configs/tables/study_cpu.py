"""All methods on small real data with DeiT-Tiny: a comparison that a CPU can finish.

Command: python tools/tables.py study_cpu --devices cpu --jobs 2
    A run takes 6 to 25 minutes on one core. The whole grid is days on a CPU and hours on a GPU;
    --methods, --tasks, --seeds and --no-search make it smaller.
Data: CDRA_VTAB_ROOT with caltech101 and cifar10, CDRA_CAMVID_ROOT; weights: CDRA_DEIT_TINY.
Search: the backbone's rate relative to the head's 1e-3 on the validation split, three values for
    each method; where only the head is trained, three rates of the head. Then trained with the best
    and tested once.
Result: docs/results.md, as far as measured. Ten epochs (CamVid: 400 iterations) are a short
    schedule; for another: --cfg-options train_cfg.max_epochs=100 param_scheduler.0.end=10
"""

_base_ = '../_base_/tables/methods.py'

title = 'DeiT-Tiny on small data, short schedule'
metrics = {'accuracy/top1': 'top-1'}
seeds = [0, 1, 2]
means = False
search = {'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': [0.01, 0.1, 1.0]}
methods = dict(
    linear=dict(
        search={
            'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': [1.0],
            'optim_wrapper.optimizer.lr': [3e-4, 1e-3, 3e-3],
        }
    ),
)
tasks = dict(
    caltech101=dict(
        title='Caltech-101',
        config='../cdra/deit_tiny_caltech101.py',
        report='final_run',
        options={'train_cfg.max_epochs': 10, 'param_scheduler.0.end': 1},
    ),
    cifar10=dict(
        title='CIFAR-10',
        config='../cdra/deit_tiny_cifar10.py',
        report='final_run',
        options={'train_cfg.max_epochs': 10, 'param_scheduler.0.end': 1},
    ),
    camvid=dict(
        title='CamVid',
        config='../cdra/deit_tiny_camvid.py',
        report='test',
        metrics=dict(mIoU='mIoU', mDice='mDice'),
        # Its own loss needs a label for each image.
        methods=dict(gps=dict(loss='task')),
        options={
            'train_cfg.max_iters': 400,
            'train_cfg.val_interval': 400,
            'default_hooks.checkpoint.interval': 400,
            'param_scheduler.0.end': 40,
        },
    ),
)
