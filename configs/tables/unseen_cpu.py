"""Five data sets that chose nothing here: whether what study_cpu says of mergeable methods holds.

Command: python tools/tables.py unseen_cpu --jobs 2
    The sets, the rows and what is compared were fixed before any method was run on them: the mean
    rank on test images among the seven rows that merge and train no more than CDRA does, and
    differences in pairs. Runs that are done stay; --tasks and --methods take a part.
Data: CDRA_UNSEEN_ROOT, a folder that tools/study_data.py makes: hand signs and clothing
    (classification), rail vehicles from the front and the side and cracks of a road (dense).
    Weights: CDRA_DEIT_TINY.
Model, training, rates: those of study_cpu. Signs are read at 64 pixels, as CIFAR-10 is there,
    clothing at 96, dense images at 128.
Heads: dense tasks are there twice, as drawn and, ``_fitted``, with the head fitted alone for 100
    steps first.
Result: docs/results.md; runs in docs/records.
"""

_base_ = './study_cpu.py'

title = 'Small models on data that chose nothing'
ROWS = [
    'full', 'linear', 'lora', 'bias', 'dora_qkv', 'spt_lora_8', 'cdra_eq7', 'cdra_count',
    'cdra_descent', 'cdra_brief',
]  # fmt: skip
methods = {name: dict(_delete_=True) for name in _base_.methods if name not in ROWS}
ROOT = '{{$CDRA_UNSEEN_ROOT:data/unseen}}/'
DENSE = {
    name: dict(
        title=title, metric='mIoU', kind='dense', folder=ROOT + name, size=128, batch=4, test=1,
    )
    for name, title in {
        'rail_front': 'Rail, front', 'rail_side': 'Rail, side', 'cracks': 'Cracks',
    }.items()
}  # fmt: skip
tasks = dict(
    _delete_=True,
    signs=dict(
        title='Signs', metric='top-1', kind='vtab', folder=ROOT + 'signs', size=64, batch=16,
        test=1000,
    ),
    clothing=dict(
        title='Clothing', metric='top-1', kind='vtab', folder=ROOT + 'clothing', size=96, batch=16,
        test=1000,
    ),
    **DENSE,
    **{
        f'{name}_fitted': dict(task, title=f'{task["title"]}, head first', head_iterations=100)
        for name, task in DENSE.items()
    },
)  # fmt: skip
del ROWS, ROOT, DENSE
