"""Six data sets that chose nothing here, after the default began to fit its head briefly.

Command: python tools/tables.py unseen_brief_cpu --jobs 2
    The sets, the rows and what is compared were fixed before any method was run on them: the mean
    rank on test images among the seven rows that merge and train no more than CDRA does, (1) each
    with the head fitted briefly first, and (2) CDRA as it is by default (cdra_brief) among the
    others with the head as it is drawn; and differences in pairs. Runs that are done stay; --tasks
    and --methods take a part.
Data: CDRA_UNSEEN_ROOT, a folder that tools/study_data.py makes: waste, brain scans and flowers
    (classification), clothed people, vessels of the retina and nuclei (dense).
    Weights: CDRA_DEIT_TINY.
Model, training, rates: those of study_cpu; all but flowers, at 64 pixels, are read at 96 and, dense
    ones, at 128.
Heads: each task is there twice, as drawn and, ``_brief``, with the head fitted alone for 10 steps
    first.
Result: docs/results.md; runs in docs/records.
"""

_base_ = './study_cpu.py'

title = 'Small models on more data that chose nothing'
ROWS = [
    'lora', 'bias', 'dora_qkv', 'spt_lora_8', 'cdra_eq7', 'cdra_count', 'cdra_descent',
    'cdra_brief',
]  # fmt: skip
methods = {name: dict(_delete_=True) for name in _base_.methods if name not in ROWS}
ROOT = '{{$CDRA_UNSEEN_ROOT:data/unseen}}/'
DRAWN = {
    **{
        name: dict(
            title=title, metric='top-1', kind='vtab', folder=ROOT + name, size=size, batch=16,
            test=1000,
        )
        for name, (title, size) in {
            'trash': ('Waste', 96), 'brain': ('Brain scans', 96), 'flowers': ('Flowers', 64),
        }.items()
    },
    **{
        name: dict(
            title=title, metric='mIoU', kind='dense', folder=ROOT + name, size=128, batch=4, test=1,
        )
        for name, title in {
            'parsing': 'Clothed people', 'retina': 'Retina', 'nuclei': 'Nuclei',
        }.items()
    },
}  # fmt: skip
tasks = dict(
    _delete_=True,
    **DRAWN,
    **{
        f'{name}_brief': dict(task, title=f'{task["title"]}, head briefly', head_iterations=10)
        for name, task in DRAWN.items()
    },
)
del ROWS, ROOT, DRAWN
