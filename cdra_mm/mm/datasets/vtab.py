"""VTAB-1k tasks in the list layout that the parameter-efficient tuning papers share.

A task is one folder with ``train800.txt``, ``val200.txt``, ``train800val200.txt`` and ``test.txt``.
A line is ``images/test/000000.jpg 51``: a path relative to the folder, a space, a zero-based label.

The tasks, their class numbers and bins are those of google-research/task_adaptation (Zhai et al.,
2019), which takes its labels from TensorFlow Datasets; the lists are written by SPT's
``get_vtab1k.py`` from them. Class names are in ``class_names/<task>.txt`` with their source. DMLab
publishes six labels without saying which is which, so its labels serve as names.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from mmengine.registry import DATASETS

from cdra_mm.data import SOURCES
from cdra_mm.data.list_files import read_text_list

from .listed_images import ListedImages

__all__ = ['TASK_CLASSES', 'VTAB1k']

# Classes of each VTAB-1k task, by folder name.
TASK_CLASSES = {split.part: split.num_classes or 0 for split in SOURCES['vtab'].splits}

NAMES = Path(__file__).parent / 'class_names'
NAMELESS = {'dmlab'}


@DATASETS.register_module()
class VTAB1k(ListedImages):
    """One split of one VTAB-1k task; arguments and errors are those of `ListedImages`.

    Hyper-parameters are chosen with ``train800`` and ``val200``; the figure to report is one test
    on ``test`` of a model trained on ``train800val200``.
    """

    TITLE: ClassVar[str] = 'VTAB-1k'
    SPLITS: ClassVar[tuple[str, ...]] = ('train800', 'val200', 'train800val200', 'test')
    WHERE_FROM: ClassVar[str] = (
        'VTAB-1k in this layout is the archive that the NOAH and SPT repositories link to (one '
        'folder per task; cdra data prepare vtab unpacks it): point data_root, or '
        'CDRA_VTAB_ROOT for the shipped configs, to it'
    )

    @classmethod
    def known_classes(cls, folder: str) -> tuple[str, ...] | None:
        """The names of a task's file, or its labels where nobody names them."""
        if folder not in TASK_CLASSES:
            return None
        if folder in NAMELESS:
            return tuple(map(str, range(TASK_CLASSES[folder])))
        lines = (NAMES / f'{folder}.txt').read_text(encoding='utf-8').splitlines()
        return tuple(line for line in lines if not line.startswith('#'))

    def read_split(self, root: Path) -> tuple[Path, list[tuple[str, int]]]:
        """Reads and checks one list; see `ListedImages.read_split`."""
        read = partial(read_text_list, num_classes=self.num_classes)
        return root, list(self.labels_in(root / f'{self.split}.txt', read).items())
