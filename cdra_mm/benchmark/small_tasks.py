"""Real data sets, small enough to be held in memory as squares of one size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdra_mm.data.list_files import read_text_list
from cdra_mm.data.optional import optional_module
from cdra_mm.errors import DataError

__all__ = ['IGNORED', 'Task', 'read_dense', 'read_vtab']

IGNORED = 255


@dataclass(frozen=True)
class Task:
    """Images and labels of one data set.

    Attributes:
        train: Images uint8 ``[N, 3, S, S]`` and labels, ``[N]`` or ``[N, S, S]``.
        val: Likewise.
        classes: Number of classes.
        test: Likewise, None where they were not read.
    """

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    classes: int
    test: tuple[Tensor, Tensor] | None = None

    @property
    def dense(self) -> bool:
        """Whether every pixel has a label."""
        return self.train[1].dim() == 3

    def to(self, device: str) -> Task:
        """The same on a device."""

        def move(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return part[0].to(device), part[1].to(device)

        test = None if self.test is None else move(self.test)
        return replace(self, train=move(self.train), val=move(self.val), test=test)

    def score(self, found: Tensor) -> float:
        """Of validation labels: top-1, or the mean IoU over the classes that occur, in percent."""
        right = self.val[1]
        if not self.dense:
            return 100 * float((found == right).float().mean())
        known = right != IGNORED
        pairs = right[known] * self.classes + found[known]
        matrix = pairs.bincount(minlength=self.classes**2).view(self.classes, self.classes).double()
        union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
        return 100 * float((matrix.diag() / union)[union > 0].mean())


def read_vtab(folder: Path, size: int, *, tested: int = 0) -> Task:
    """A data set in VTAB's layout: its train800 and val200, and so many images of its test.

    Raises:
        DataError: If a list has a fault.
    """

    def read(split: str, most: int | None = None) -> tuple[Tensor, Tensor]:
        listed = read_text_list(folder / f'{split}.txt')
        if listed.faults:
            raise DataError(str(listed.faults[0]))
        labels = dict(islice(listed.labels.items(), most))
        pictures = [_picture(folder / name, size) for name in labels]
        return torch.stack(pictures), torch.tensor(list(labels.values()))

    train, val = read('train800'), read('val200')
    test = read('test', tested) if tested else None
    return Task(train, val, int(torch.cat([train[1], val[1]]).max()) + 1, test)


def read_dense(folder: Path, size: int, void: int | None = None, *, every: int = 0) -> Task:
    """A data set of ``img_dir`` and ``ann_dir``, whole images made square.

    Its train and val, and of its test every so many-th image, 0 for none.
    """

    def read(split: str, every: int = 1) -> tuple[Tensor, Tensor]:
        files = sorted((folder / 'img_dir' / split).iterdir())[::every]
        masks = [folder / 'ann_dir' / split / f'{file.stem}.png' for file in files]
        labels = torch.stack([_read(mask, size, 'NEAREST') for mask in masks]).long()
        if void is not None:
            labels[labels == void] = IGNORED
        return torch.stack([_picture(file, size) for file in files]), labels

    train, val = read('train'), read('val')
    test = read('test', every) if every else None
    return Task(train, val, int(train[1][train[1] != IGNORED].max()) + 1, test)


def _picture(path: Path, size: int) -> Tensor:
    return _read(path, size, 'BILINEAR', 'RGB').permute(2, 0, 1)


def _read(path: Path, size: int, how: str, mode: str | None = None) -> Tensor:
    """A file as uint8 ``[S, S]`` or ``[S, S, 3]``."""
    import numpy as np

    pillow: Any = optional_module('PIL.Image', 'pillow')
    with pillow.open(path) as picture:
        square = (picture.convert(mode) if mode else picture).resize(
            (size, size), getattr(pillow.Resampling, how)
        )
        return torch.from_numpy(np.array(square))
