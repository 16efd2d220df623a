"""A split whose list names its images and their labels: what VTAB-1k and FGVC share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmpretrain.datasets import BaseDataset

from cdra_mm.command_line import worded
from cdra_mm.data.list_files import ListFile
from cdra_mm.errors import ConfigError, DataError
from cdra_mm.spelling import first_of

__all__ = ['ListedImages']

# Missing images that a message names before it only counts the rest.
NAMED_IMAGES = 3


class ListedImages(BaseDataset):
    """One split of a data set of listed images.

    Everything a list can get wrong is found when it is loaded, before any training: see Raises.

    Args:
        data_root: Folder of the set.
        split: One of ``SPLITS``.
        num_classes: Labels run from 0 to ``num_classes - 1``. ``None``: the number of ``classes``,
            or that of the known set whose name the folder bears.
        classes: Class names in label order. ``None``: those of the known set, where it has names
            and ``num_classes`` says nothing else; otherwise the labels serve as names.
        pipeline: Transforms, as in every mmpretrain dataset.
        check_images: Whether to look for every image file once, when the list is loaded.
        **kwargs: Passed on to mmpretrain's ``BaseDataset`` (``test_mode``, ``lazy_init``, ...).

    Raises:
        ConfigError: If the split is unknown, or the number of classes is unknown or contradictory.
        DataError: If the folder or the list is missing, the list is empty or malformed, a label
            is out of range, a path is repeated or leaves the folder, or (with ``check_images``)
            an image is missing.
    """

    # What a subclass says of its family of data sets.
    TITLE: ClassVar[str]
    SPLITS: ClassVar[tuple[str, ...]]
    WHERE_FROM: ClassVar[str]

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
        if split not in self.SPLITS:
            known = ', '.join(self.SPLITS)
            raise ConfigError(f'unknown {self.TITLE} split {split!r}; choose from {known}')
        root = Path(data_root).expanduser()
        self.split = split
        self.check_images = check_images
        names = self._class_names(num_classes, classes, root.name)
        self.num_classes = len(names)
        super().__init__(
            ann_file='', data_root=str(root), classes=names, pipeline=pipeline, **kwargs
        )

    @classmethod
    def known_classes(cls, folder: str) -> tuple[str, ...] | None:
        """Class names of the known set that a folder of this name holds.

        Returns:
            Names in label order, or None where no known set has that name.
        """
        raise NotImplementedError

    def read_split(self, root: Path) -> tuple[Path, list[tuple[str, int]]]:
        """Reads and checks the list of the split.

        Returns:
            The folder that image paths are relative to, and each image's path and label.
        """
        raise NotImplementedError

    def load_data_list(self) -> list[dict[str, Any]]:
        """Reads and checks the list of the split.

        Returns:
            One ``{'img_path', 'gt_label'}`` for each image, in the order of the list.
        """
        root = Path(self.data_root)
        if not root.is_dir():
            raise DataError(f'{self.TITLE} folder {root} does not exist. {worded(self.WHERE_FROM)}')
        images, samples = self.read_split(root)
        if self.check_images:
            self._require_images(images, [path for path, _ in samples])
        return [dict(img_path=str(images / path), gt_label=label) for path, label in samples]

    def labels_in(self, file: Path, read: Callable[[Path], ListFile]) -> dict[str, int]:
        """Class id by path of a list in which nothing is wrong.

        Raises:
            DataError: Names the first fault with its line, or that the list is missing or empty.
        """
        if not file.is_file():
            present = sorted(path.name for path in file.parent.glob(f'*{file.suffix}')) or 'none'
            raise DataError(
                f'list file {file} does not exist (lists there: {present}). '
                f'{worded(self.WHERE_FROM)}'
            )
        found = read(file)
        if found.faults:
            raise DataError(str(found.faults[0]))
        if not found.labels:
            raise DataError(f'{file} lists no image. {worded(self.WHERE_FROM)}')
        return found.labels

    def _class_names(
        self, number: int | None, classes: Sequence[str] | None, folder: str
    ) -> tuple[str, ...]:
        """Names from the setting, the number, or the name of the folder, in this order."""
        if isinstance(classes, str):
            raise ConfigError(f'classes must be a list of names, not the text {classes!r}')
        if classes is not None and number is not None and len(classes) != number:
            raise ConfigError(f'num_classes={number}, but classes holds {len(classes)} names')
        known = self.known_classes(folder)
        names = tuple(classes) if classes is not None else known
        if number is None and names is None:
            raise ConfigError(
                f'{folder!r} is no {self.TITLE} data set that is known here: set num_classes'
            )
        if (number is not None and number < 1) or names == ():
            raise ConfigError(f'num_classes must be positive, got {number or 0}')
        if names is None or (number is not None and len(names) != number):
            return tuple(map(str, range(number or 0)))
        return names

    def _require_images(self, folder: Path, paths: Sequence[str]) -> None:
        """Raises when an image is missing; the message names the first few."""
        missing = [path for path in paths if not os.path.isfile(folder / path)]
        if missing:
            raise DataError(
                f'{len(missing)} of {len(paths)} listed images are missing under {folder}: '
                f'{first_of(missing, NAMED_IMAGES)}. {worded(self.WHERE_FROM)}'
            )
