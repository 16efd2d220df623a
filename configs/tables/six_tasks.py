"""All methods on six tasks with small pretrained models, through OpenMMLab's own training.

The tasks of study_cpu with augmentation, crops and the runs of tools/train.py: three times its
cost.

Command: python tools/tables.py six_tasks --devices cpu --jobs 2 --drop-checkpoints
    Seconds of a busy core, estimated from single steps (0.75 for 32 images of 96 pixels, 0.35 for 8
    crops of 128) and met by one whole run of half the length (97 for LoRA on Caltech-101): about
    130 a run of the two classifications, 90 of the four dense tasks. With 3 runs to search and 3
    seeds a row takes an hour of one core: 20 rows 10 hours on two, all with those of own size
    (--methods leaves them out) 14. NOAH takes up to four times. Runs that are done stay.
Data: CDRA_VTAB_ROOT with caltech101 and cifar10; CDRA_CAMVID_ROOT, CDRA_CWFID_ROOT,
    CDRA_DUBAI_AERIAL_ROOT and CDRA_VNC_EM_ROOT. Weights: CDRA_DEIT_TINY, and the ViT for 32 pixels
    that ships with the project (CDRA_VIT_TINY32 from another folder).
Rows: every method trains about as many parameters of the backbone, 0.3 to 0.6 percent; what has no
    such size (Full, Partial-1, VPT-Shallow, RLRR, GPS) has its own. Rows that end in ``_own`` are
    of the papers' sizes, as is spt_lora_16.
Search: the backbone's rate, three values on the validation split with the first seed; full
    fine-tuning has smaller ones; where only the head is trained, three rates of the head. A best
    rate at an edge is named in the report: widen that row's list and give the command again, runs
    that are done stay. Then trained with the best and tested once a seed.
Result: not run as a whole; see study_cpu, and docs/results.md. Images are smaller than DeiT-Tiny's
    own 224 pixels (Caltech-101: 96, crops of 128, of CamVid 112); of CamVid every fourth image is
    validated and tested, of carrots and aerial images every second is tested.
"""

_base_ = '../_base_/tables/methods.py'

title = 'Small models on small data'
metrics = {'accuracy/top1': 'top-1'}
seeds = [0, 1, 2]
means = True

HEAD_RATE = 1e-2
BACKBONE = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'


def rates(*values, key=BACKBONE, head=HEAD_RATE):
    """Rates of the backbone, which a config states as multiples of the head's."""
    return {key: [round(value / head, 6) for value in values]}


HEAD_ALONE = {BACKBONE: [1.0], 'optim_wrapper.optimizer.lr': [3e-3, 1e-2, 3e-2]}
# As many parameters as LoRA of rank 3 on q and v: 27,648 of DeiT-Tiny, 0.5 percent.
EQUAL = dict(
    adapter=dict(bottleneck=5),
    apla=dict(partial_size=12),
    cdra=dict(budget_percent=0.5),
    cdra_eq7=dict(budget_percent=0.5),
    dora=dict(rank=3),
    lora=dict(rank=3),
    mona=dict(bottleneck=1),
    noah=dict(
        budget_percent=0.5,
        # Supernet and search are as short as the runs.
        population=10,
        num_parents=4,
        num_mutations=5,
        num_crossovers=5,
        generations=3,
    ),
    # Two matrices' outputs and inputs a rank and block, and the biases: half of the blocks.
    soma=dict(rank=1, frozen_blocks=6),
    spt_adapter=dict(budget_percent=0.5),
    spt_lora_8=dict(budget_percent=0.5),
    vpt_deep=dict(num_prompts=12),
)
OWN = ('adapter', 'apla', 'dora', 'lora', 'mona', 'soma')
SEARCH = dict(full=rates(3e-5, 1e-4, 3e-4), linear=HEAD_ALONE, mlp=HEAD_ALONE)

search = rates(1e-3, 3e-3, 1e-2)
methods = {
    **{
        # The base's rows, whatever they are.
        name: {
            **({'method': EQUAL[name]} if name in EQUAL else {}),
            **({'search': SEARCH[name]} if name in SEARCH else {}),
        }
        for name in _base_.methods
    },
    **{
        f'{name}_own': dict(_base_.methods[name], title=f'{_base_.methods[name].title}, own size')
        for name in OWN
        if name in _base_.methods
    },
}
options = {
    'optim_wrapper.optimizer.lr': HEAD_RATE,
    # Small images are read faster than processes are started.
    **{
        f'{loader}_dataloader.{key}': value
        for loader in ('train', 'val', 'test')
        for key, value in dict(num_workers=0, persistent_workers=False).items()
    },
}


def classification(title, config, size, epochs=4):
    """A task of 800 images to choose by 200, then of 1000; 25 or 32 iterations an epoch."""
    return dict(
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
            **(
                {
                    'model.backbone.img_size': size,
                    **{
                        f'{loader}_dataloader.dataset.pipeline.1.scale': (size, size)
                        for loader in ('train', 'val', 'test')
                    },
                }
                if size
                else {}
            ),
        },
    )


def segmentation(title, config, crop, val, test, iters=120):
    """A task of crops; ``val`` and ``test`` are which of the images are looked at."""
    return dict(
        title=title,
        config=f'../cdra/{config}.py',
        report='test',
        metrics=dict(mIoU='mIoU'),
        # Its own loss needs a label for each image.
        methods=dict(gps=dict(loss='task'), noah=dict(supernet_iters=iters)),
        options={
            'model.data_preprocessor.size': (crop, crop),
            'model.backbone.img_size': crop,
            'train_dataloader.dataset.pipeline.3.crop_size': (crop, crop),
            'train_cfg.max_iters': iters,
            'train_cfg.val_interval': iters,
            'default_hooks.checkpoint.interval': iters,
            'param_scheduler.0.end': 10,
            'val_dataloader.dataset.indices': list(val),
            'test_dataloader.dataset.indices': list(test),
        },
    )


tasks = dict(
    caltech101=classification('Caltech-101', 'deit_tiny_caltech101', 96),
    cifar10=classification('CIFAR-10', 'vit_tiny32_cifar10', None),
    camvid=segmentation('CamVid', 'deit_tiny_camvid', 112, range(0, 101, 4), range(0, 233, 4)),
    cwfid=segmentation('Carrots', 'deit_tiny_cwfid', 128, range(46), range(0, 146, 2)),
    dubai_aerial=segmentation('Aerial', 'deit_tiny_dubai_aerial', 128, range(36), range(0, 170, 2)),
    vnc_em=segmentation('Microscopy', 'deit_tiny_vnc_em', 128, range(32), range(64)),
)
if 'soma' in _base_.methods:
    # The ViT for 32 pixels has half the blocks.
    tasks['cifar10']['methods']['soma'] = dict(frozen_blocks=3)
del HEAD_RATE, BACKBONE, HEAD_ALONE, EQUAL, OWN, SEARCH
