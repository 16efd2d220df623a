"""VTAB-1k tasks in the list layout that the parameter-efficient tuning papers share.

A task is one folder with ``train800.txt``, ``val200.txt``, ``train800val200.txt`` and ``test.txt``.
A line is ``images/test/000000.jpg 51``: a path relative to the folder, a space, a zero-based label.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS
from mmpretrain.datasets import BaseDataset

from cdra_mm.core.errors import ConfigError, DataError

SPLITS = ('train800', 'val200', 'train800val200', 'test')

# Classes of each VTAB-1k task, by folder name.
TASK_CLASSES = {
    'caltech101': 102, 'cifar': 100, 'dtd': 47, 'oxford_flowers102': 102, 'oxford_iiit_pet': 37,
    'svhn': 10, 'sun397': 397, 'patch_camelyon': 2, 'eurosat': 10, 'resisc45': 45,
    'diabetic_retinopathy': 5, 'clevr_count': 8, 'clevr_dist': 6, 'dmlab': 6, 'kitti': 4,
    'dsprites_loc': 16, 'dsprites_ori': 16, 'smallnorb_azi': 18, 'smallnorb_ele': 9,
}  # fmt: skip

# Missing images that a message names before it only counts the rest.
NAMED_IMAGES = 3

WHERE_FROM = (
    'VTAB-1k in this layout is the archive that the NOAH and SPT repositories link to (one folder '
    'per task): unpack it and point data_root, or CDRA_VTAB_ROOT for the shipped configs, to it'
)


@DATASETS.register_module()
class VTAB1k(BaseDataset):
    """One split of one VTAB-1k task.

    Everything a list can get wrong is found when it is loaded, before any training: see Raises.

    Args:
        data_root: The task's folder.
        split: ``'train800'``, ``'val200'``, ``'train800val200'`` or ``'test'``.
        num_classes: Labels run from 0 to ``num_classes - 1``. ``None``: the number of ``classes``,
            or the known number of the task whose name the folder bears.
        classes: Class names in label order. ``None``: the labels themselves serve as names.
        pipeline: Transforms, as in every mmpretrain dataset.
        check_images: Whether to look for every image file once, when the list is loaded.
        **kwargs: Passed on to mmpretrain's ``BaseDataset`` (``test_mode``, ``lazy_init``, ...).

    Raises:
        ConfigError: If the split is unknown, or the number of classes is unknown or contradictory.
        DataError: If the folder or the list is missing, the list is empty or not text, a line is
            malformed, its label out of range, its path repeated or outside the folder, or (with
            ``check_images``) an image is missing.
    """

    def __init__(
        self,
        data_root: str,
        split: str,
        *,
        num_classes: int | None = None,
        classes: Sequence[str] | None = None,
        pipeline: Sequence[Any] = (),
        check_images: bool = True,
        **kwargs: Any,
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f'unknown VTAB-1k split {split!r}; choose from {", ".join(SPLITS)}')
        root = Path(data_root).expanduser()
        self.split = split
        self.check_images = check_images
        self.num_classes = _number_of_classes(num_classes, classes, root.name)
        names = tuple(classes) if classes is not None else map(str, range(self.num_classes))
        super().__init__(
            ann_file=f'{split}.txt',
            data_root=str(root),
            classes=tuple(names),
            pipeline=pipeline,
            **kwargs,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Read and check the split's list.

        Returns:
            One ``{'img_path', 'gt_label'}`` for each image, in the order of the list.
        """
        root = Path(self.data_root)
        if not root.is_dir():
            raise DataError(f'VTAB-1k task folder {root} does not exist. {WHERE_FROM}')
        samples = _read_list(root, f'{self.split}.txt', self.num_classes)
        if self.check_images:
            _require_images(root, [path for path, _ in samples])
        return [dict(img_path=str(root / path), gt_label=label) for path, label in samples]


def _number_of_classes(given: int | None, classes: Sequence[str] | None, task: str) -> int:
    """The number of classes from the setting, the names, or the task's name, in this order."""
    if isinstance(classes, str):
        raise ConfigError(f'classes must be a list of names, not the text {classes!r}')
    if classes is not None and given is not None and len(classes) != given:
        raise ConfigError(f'num_classes={given}, but classes holds {len(classes)} names')
    number = given if given is not None else len(classes) if classes else TASK_CLASSES.get(task)
    if number is None:
        raise ConfigError(f'{task!r} is no VTAB-1k task that is known here: set num_classes')
    if number < 1:
        raise ConfigError(f'num_classes must be positive, got {number}')
    return number


def _read_list(root: Path, name: str, num_classes: int) -> list[tuple[str, int]]:
    """Paths and labels of one list file, every line checked."""
    file = root / name
    if not file.is_file():
        present = sorted(path.name for path in root.glob('*.txt')) or 'none'
        raise DataError(f'list file {file} does not exist (lists there: {present}). {WHERE_FROM}')
    try:
        lines = file.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f'{file} is not UTF-8 text (byte {error.start})') from None
    samples: list[tuple[str, int]] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f'{file}:{number}'
        path, label = _parse_line(line, where, num_classes)
        key = os.path.normpath(path)
        if key in line_of:
            raise DataError(f'{where}: {path} is listed already on line {line_of[key]}')
        line_of[key] = number
        samples.append((path, label))
    if not samples:
        raise DataError(f'{file} lists no image')
    return samples


def _parse_line(line: str, where: str, num_classes: int) -> tuple[str, int]:
    """Path and label of one line; the path may contain spaces."""
    parts = line.strip().rsplit(maxsplit=1)
    if len(parts) != 2 or not re.fullmatch(r'-?[0-9]+', parts[1]):
        raise DataError(f'{where}: expected "path label", got {line.strip()!r}')
    path, label = parts[0], int(parts[1])
    if not 0 <= label < num_classes:
        raise DataError(
            f'{where}: label {label} is out of range for {num_classes} classes '
            f'(0 to {num_classes - 1}); correct the list or num_classes'
        )
    if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir:
        raise DataError(f'{where}: {path} leaves the task folder; paths are relative to it')
    return path, label


def _require_images(root: Path, paths: Sequence[str]) -> None:
    """Raise when an image is missing; the message names the first few."""
    missing = [path for path in paths if not (root / path).is_file()]
    if missing:
        named = ', '.join(missing[:NAMED_IMAGES])
        rest = f' and {len(missing) - NAMED_IMAGES} more' if len(missing) > NAMED_IMAGES else ''
        raise DataError(
            f'{len(missing)} of {len(paths)} listed images are missing under {root}: '
            f'{named}{rest}. {WHERE_FROM}'
        )
