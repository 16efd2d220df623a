"""VTAB-1k in the list layout that the parameter-efficient tuning papers share.

    caltech101/train800.txt  val200.txt  train800val200.txt  test.txt
    caltech101/images/train800/000000.jpg ...

A line of a list is ``images/train800/000000.jpg 51``: a path relative to the task's folder, a
space, a zero-based class id. Test counts are those of the benchmark's own data sets (Zhai et al.,
"A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark").
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cdra_mm.errors import DataError

from .expected_contents import ExpectedContents
from .layout import Split
from .listed import ListSplit
from .unpack import DamagedArchiveError, unpack

__all__ = ['TASKS', 'convert_vtab', 'fit_vtab', 'task_splits']

# Task folder: number of classes, number of test images.
TASKS = {
    'caltech101': (102, 6084),
    'cifar': (100, 10000),
    'dtd': (47, 1880),
    'oxford_flowers102': (102, 6149),
    'oxford_iiit_pet': (37, 3669),
    'svhn': (10, 26032),
    'sun397': (397, 21750),
    'patch_camelyon': (2, 32768),
    'eurosat': (10, 5400),
    'resisc45': (45, 6300),
    'diabetic_retinopathy': (5, 42670),
    'clevr_count': (8, 15000),
    'clevr_dist': (6, 15000),
    'dmlab': (6, 22735),
    'kitti': (4, 711),
    'dsprites_loc': (16, 73728),
    'dsprites_ori': (16, 73728),
    'smallnorb_azi': (18, 12150),
    'smallnorb_ele': (9, 12150),
}
COUNTS = {'train800': 800, 'val200': 200, 'train800val200': 1000}
MARK = 'train800.txt'  # a folder with this file is a task's
DEPTH = 3  # folders above a task in an archive, at most


def task_splits(task: str, part: str) -> tuple[ListSplit, ...]:
    """The four splits of a task.

    Args:
        task: Name of the task; for an unknown one the classes and test images are not counted.
        part: Its folder, relative to the root.
    """
    num_classes, test = TASKS.get(task, (None, None))
    counts: dict[str, int | None] = {**COUNTS, 'test': test}
    return tuple(
        ListSplit(name=name, count=count, part=part, num_classes=num_classes)
        for name, count in counts.items()
    )


def fit_vtab(splits: tuple[Split, ...], root: Path) -> ExpectedContents:
    """One task where the folder is a task's; otherwise the known tasks and what else is there."""
    if (root / MARK).is_file():
        task = root.resolve().name
        notes = () if task in TASKS else (_unknown(task),)
        return ExpectedContents(task_splits(task, ''), entries=('.',), notes=notes)
    found = sorted(path.parent.name for path in root.glob(f'*/{MARK}'))
    known = {split.part for split in splits}
    others = [task for task in found if task not in known and not task.startswith('.')]
    extra = tuple(split for task in others for split in task_splits(task, task))
    return ExpectedContents((*splits, *extra), notes=tuple(map(_unknown, others)))


def _unknown(task: str) -> str:
    return f'note: {task} is no VTAB-1k task: its number of test images and classes is not compared'


def convert_vtab(files: Mapping[str, Path], out: Path) -> None:
    """Unpack the tasks of an archive, wherever in it they lie.

    Raises:
        DataError: If the archive cannot be unpacked, or holds a task twice or none.
    """
    (archive,) = files.values()
    unpacked = out / 'unpacked'
    unpack(archive, unpacked)
    marks = [path for depth in range(1, DEPTH + 1) for path in unpacked.glob('*/' * depth + MARK)]
    tasks = sorted(path.parent for path in marks if path.parent.name in TASKS)
    if not tasks:
        raise DamagedArchiveError(
            archive, f'{archive} holds no VTAB-1k task (a folder such as caltech101 with {MARK})'
        )
    for folder in tasks:
        if (out / folder.name).exists():
            raise DataError(f'{archive} holds the task {folder.name} twice')
        folder.rename(out / folder.name)
