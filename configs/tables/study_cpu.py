"""All methods on six tasks with a small pretrained model: sizes that finish on a CPU.

Command: python tools/tables.py study_cpu --jobs 2
    Runs that are done stay; --tasks and --methods take a part. Seconds of a busy core: about 90 a
    run of Caltech-101, 48 of CIFAR-10, 45 of a dense task; a row with its search and three seeds
    half an hour, and again with fitted heads.
Data: CDRA_VTAB_ROOT with caltech101 and cifar10; CDRA_CAMVID_ROOT, CDRA_CWFID_ROOT,
    CDRA_DUBAI_AERIAL_ROOT and CDRA_VNC_EM_ROOT. Weights: CDRA_DEIT_TINY.
Model: DeiT-Tiny under a linear head, of the class token or of every patch.
Training: 150 iterations of AdamW, batch 16 (dense 4), one cycle, no augmentation, whole images made
    square. The head's rate is 1e-2: so the head alone had converged: with 1,350 steps more it is
    at most a point better on validation but on CamVid (rows linear and linear_long of parts_cpu).
Heads: each task is there three times; in the one that ends in ``_fitted`` the head is fitted alone
    for 100 steps before anything is scored and trained, in the one that ends in ``_brief`` for 10.
    The row cdra_brief does that by itself. --tasks takes those that are wanted.
Rows: every method trains about as many parameters of the backbone, 0.3 to 0.6 percent; what has no
    such size (Full, Partial-1, VPT-Shallow, RLRR, GPS, MLP, Mona) has its own. Rows that end in
    ``_own`` are of their papers' sizes, as is spt_lora_16.
Search: the backbone's rate on the validation images with the first seed, from ``rate`` up and down
    the ladder ``rates`` until a worse one stands on each side. The other seeds take it.
Result: docs/results.md; runs in docs/records.
"""

_base_ = '../_base_/tables/methods.py'

title = 'Small models on small data'
seeds = [0, 1, 2]
weights = '{{$CDRA_DEIT_TINY:data/deit_tiny.safetensors}}'
iterations = 150
head_rate = 1e-2
rates = [1e-7, 1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 0.16, 0.32]

# Supernet and search are as short as the runs.
NOAH = dict(
    supernet_iters=150,
    population=10,
    num_parents=4,
    num_mutations=5,
    num_crossovers=5,
    generations=3,
)
DESCENT = dict(type='cdra', budget_percent=0.5, allocation='descent', start='gradient')
# As many parameters as LoRA of rank 3 on q and v: 27,648 of DeiT-Tiny, 0.5 percent.
methods = dict(
    adapter=dict(method=dict(bottleneck=5)),
    apla=dict(method=dict(partial_size=12), rate=3e-3),
    dora_qkv=dict(
        title='DoRA (qkv, by peft)',
        family='Reparameterization-based',
        peft=dict(peft_type='LORA', use_dora=True, r=2, lora_alpha=2, target_modules=['qkv']),
    ),
    cdra=dict(_delete_=True),
    cdra_count=dict(
        title='CDRA (count)',
        family='Selection-based',
        method=dict(type='cdra', budget_percent=0.5, rank_rule='count'),
    ),
    cdra_energy=dict(
        title='CDRA (gradient energy)',
        family='Selection-based',
        method=dict(type='cdra', budget_percent=0.5, allocation='energy', start='gradient'),
    ),
    cdra_descent=dict(
        title='CDRA (descent)',
        family='Selection-based',
        method=DESCENT,
    ),
    cdra_brief=dict(
        title='CDRA (head briefly, descent)',
        family='Selection-based',
        method=DESCENT,
        head_iterations=10,
    ),
    cdra_eq7=dict(method=dict(budget_percent=0.5)),
    dora=dict(method=dict(rank=3)),
    full=dict(rate=1e-4),
    gps=dict(method=dict(loss='task')),
    linear=dict(rate=None),
    lora=dict(method=dict(rank=3)),
    **{
        f'{name}_own': dict(_base_.methods[name], title=f'{_base_.methods[name].title}, own size')
        for name in ('adapter', 'apla', 'dora', 'lora', 'mona', 'soma', 'vpt_deep')
    },
    mona=dict(method=dict(bottleneck=1)),
    noah=dict(method=dict(budget_percent=0.5, **NOAH)),
    noah_own=dict(  # their limit's share of a ViT-B/16
        _base_.methods.noah,
        title='NOAH, own size',
        method=dict(_base_.methods.noah.method, budget_percent=0.75, **NOAH),
    ),
    partial=dict(rate=3e-4),
    soma=dict(method=dict(rank=1, frozen_blocks=6)),
    spt_adapter=dict(method=dict(budget_percent=0.5)),
    spt_lora_8=dict(method=dict(budget_percent=0.5)),
    vpt_deep=dict(method=dict(num_prompts=12)),
)
del DESCENT, NOAH


def classification(title, folder, size):
    """A task of 800 images to train on, 200 to choose by, and the first 1000 of its test."""
    return dict(
        title=title,
        metric='top-1',
        kind='vtab',
        folder='{{$CDRA_VTAB_ROOT:data/vtab-1k}}/' + folder,
        size=size,
        batch=16,
        test=1000,
    )


def segmentation(title, folder, test=1, **more):
    """A task of whole images; of its test every so many-th."""
    return dict(
        title=title, metric='mIoU', kind='dense', folder=folder, size=128, batch=4, test=test,
        **more,
    )  # fmt: skip


tasks = dict(
    caltech101=classification('Caltech-101', 'caltech101', 96),
    cifar10=classification('CIFAR-10', 'cifar10', 64),
    camvid=segmentation('CamVid', '{{$CDRA_CAMVID_ROOT:data/camvid}}', 2, void=11),
    cwfid=segmentation('Carrots', '{{$CDRA_CWFID_ROOT:data/cwfid}}'),
    dubai_aerial=segmentation('Aerial', '{{$CDRA_DUBAI_AERIAL_ROOT:data/dubai_aerial}}'),
    vnc_em=segmentation('Microscopy', '{{$CDRA_VNC_EM_ROOT:data/vnc_em}}'),
)
tasks = {
    **tasks,
    **{
        f'{name}_fitted': dict(task, title=f'{task["title"]}, head first', head_iterations=100)
        for name, task in tasks.items()
    },
    **{
        f'{name}_brief': dict(task, title=f'{task["title"]}, head briefly', head_iterations=10)
        for name, task in tasks.items()
    },
}
