"""VTAB-1k tasks in the list layout that the parameter-efficient tuning papers share.

A task is one folder with ``train800.txt``, ``val200.txt``, ``train800val200.txt`` and ``test.txt``.
A line is ``images/test/000000.jpg 51``: a path relative to the folder, a space, a zero-based label.

The tasks, their class numbers and bins are those of google-research/task_adaptation (Zhai et al.,
2019), which takes its labels from TensorFlow Datasets; the lists are written by SPT's
``get_vtab1k.py`` from them. Class names are in ``class_names/<task>.txt`` with their source. DMLab
publishes six labels without saying which is which, so its labels serve as names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from mmengine.registry import DATASETS

from cdra_mm.command_line import worded
from cdra_mm.data import SOURCES
from cdra_mm.errors import DataError

from .listed_images import ListedImages, check_relative, read_text

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
        file = root / f'{self.split}.txt'
        if not file.is_file():
            raise self.missing_list(file)
        samples: list[tuple[str, int]] = []
        line_of: dict[str, int] = {}
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if not line.strip():
                continue
            where = f'{file}:{number}'
            path, label = _parse_line(line, where, self.num_classes)
            key = check_relative(path, where)
            if key in line_of:
                raise DataError(f'{where}: {path} is listed already on line {line_of[key]}')
            line_of[key] = number
            samples.append((path, label))
        if not samples:
            raise DataError(f'{file} lists no image. {worded(self.WHERE_FROM)}')
        return root, samples


def _parse_line(line: str, where: str, num_classes: int) -> tuple[str, int]:
    """Path and label of one line; the path may contain spaces."""
    parts = line.strip().rsplit(maxsplit=1)
    # Longer digits are no label, and int() refuses very long ones in its own words.
    if len(parts) != 2 or not re.fullmatch(r'-?[0-9]{1,9}', parts[1]):
        raise DataError(f'{where}: expected "path label", got {line.strip()[:200]!r}')
    path, label = parts[0], int(parts[1])
    if not 0 <= label < num_classes:
        raise DataError(
            f'{where}: label {label} is out of range for {num_classes} classes '
            f'(0 to {num_classes - 1}); correct the list or num_classes'
        )
    return path, label
