"""All methods on small real data with small pretrained models: sizes that finish on a CPU.

Command: python tools/tables.py study_cpu --devices cpu --jobs 2
    A run takes half a minute to two minutes on one core, NOAH's up to four, the whole grid (6 runs
    of 20 methods on 3 tasks) about 3 hours on two; --methods, --tasks, --seeds and --no-search
    make it smaller.
Data: CDRA_VTAB_ROOT with caltech101 and cifar10, CDRA_CAMVID_ROOT; weights: CDRA_DEIT_TINY.
Search: the backbone's rate relative to the head's 1e-2 on the validation split, three values for
    each method (full fine-tuning has smaller ones); where only the head is trained, three rates of
    the head. Then trained with the best and tested once.
Result: docs/results.md. Images are smaller than DeiT-Tiny's own 224 pixels (Caltech-101: 96,
    crops of CamVid: 112), every fourth image of CamVid is validated and tested, and 4 or 2 epochs
    or 80 iterations are a short schedule, hence the head's large rate. For a longer one:
    --cfg-options train_cfg.max_epochs=100 param_scheduler.0.end=10
"""

_base_ = '../_base_/tables/methods.py'

title = 'Small models on small data, short schedule'
metrics = {'accuracy/top1': 'top-1'}
seeds = [0, 1, 2]
means = False
search = {'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': [0.01, 0.1, 1.0]}
methods = dict(
    # Pretrained weights want smaller steps than new ones.
    full=dict(
        search={'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': [0.0001, 0.001, 0.01]}
    ),
    linear=dict(
        search={
            'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': [1.0],
            'optim_wrapper.optimizer.lr': [3e-3, 1e-2, 3e-2],
        }
    ),
    # The published limit is 0.75 % of ViT-B/16; supernet and search are as short as the runs.
    noah=dict(
        method=dict(
            budget_percent=0.75,
            population=10,
            num_parents=4,
            num_mutations=5,
            num_crossovers=5,
            generations=3,
        )
    ),
)
options = {
    'optim_wrapper.optimizer.lr': 1e-2,
    # Small images are read faster than processes are started.
    **{
        f'{loader}_dataloader.{key}': value
        for loader in ('train', 'val', 'test')
        for key, value in dict(num_workers=0, persistent_workers=False).items()
    },
}
tasks = {
    **{
        name: dict(
            title=title,
            config=f'../cdra/{config}.py',
            report='final_run',
            methods=dict(noah=dict(supernet_epochs=epochs)),
            options={
                'train_dataloader.batch_size': 32,
                'train_cfg.max_epochs': epochs,
                'train_cfg.val_interval': epochs,
                'default_hooks.checkpoint.interval': epochs,
                'param_scheduler.0.end': 1,
                **pixels,
            },
        )
        for name, title, config, epochs, pixels in (
            (
                'caltech101',
                'Caltech-101',
                'deit_tiny_caltech101',
                4,
                {
                    'model.backbone.img_size': 96,
                    'train_dataloader.dataset.pipeline.1.scale': (96, 96),
                    'val_dataloader.dataset.pipeline.1.scale': (96, 96),
                    'test_dataloader.dataset.pipeline.1.scale': (96, 96),
                },
            ),
            ('cifar10', 'CIFAR-10', 'vit_tiny32_cifar10', 2, {}),
        )
    },
    'camvid': dict(
        title='CamVid',
        config='../cdra/deit_tiny_camvid.py',
        report='test',
        metrics=dict(mIoU='mIoU', mDice='mDice'),
        # Its own loss needs a label for each image.
        methods=dict(gps=dict(loss='task'), noah=dict(supernet_iters=80)),
        options={
            'model.data_preprocessor.size': (112, 112),
            'model.backbone.img_size': 112,
            'train_dataloader.dataset.pipeline.3.crop_size': (112, 112),
            'train_cfg.max_iters': 80,
            'train_cfg.val_interval': 80,
            'default_hooks.checkpoint.interval': 80,
            'param_scheduler.0.end': 10,
            'val_dataloader.dataset.indices': list(range(0, 101, 4)),
            'test_dataloader.dataset.indices': list(range(0, 233, 4)),
        },
    ),
}
