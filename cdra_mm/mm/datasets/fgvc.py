"""FGVC: five fine-grained sets in the JSON layout of VPT, which SPT and its successors read.

A set is one folder with ``train.json``, ``val.json`` and ``test.json``, each one flat object
``{"relative/path.jpg": class id}``. Ids of the files may start anywhere and leave gaps; labels
are their positions in the sorted union of all three files, so that they agree between the splits
(VPT and SPT number each split by itself, which agrees only while every split has every class).
Layout: ``src/data/datasets/json_dataset.py`` of KMnP/vpt.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from mmengine.registry import DATASETS

from cdra_mm.data import SOURCES
from cdra_mm.data.list_files import read_json_list
from cdra_mm.data.listed import JsonSplit
from cdra_mm.errors import DataError

from .listed_images import ListedImages

__all__ = ['FGVC', 'FGVC_SETS']

FILES = ('train', 'val', 'test')
# A split is the list of its name, but for this one.
JOINED = {'trainval': ('train', 'val')}


# By folder name: number of classes, and the folders that image paths may be relative to.
FGVC_SETS = {
    split.part: split
    for source in SOURCES.values()
    for split in source.splits
    if isinstance(split, JsonSplit)
}
UNKNOWN_SET_ROOTS = ('images', 'Images', '')


@DATASETS.register_module()
class FGVC(ListedImages):
    """One split of one FGVC set; arguments and errors are those of `ListedImages`, and these.

    Hyper-parameters are chosen with ``train`` and ``val``; the figure to report is one test on
    ``test`` of a model trained on ``trainval``.

    Args:
        *args: See `ListedImages`; the number of classes must be that of the lists.
        image_root: Folder below ``data_root`` that image paths are relative to. ``None``: the
            first usual one of the set that holds the first image.
        **kwargs: See `ListedImages`.

    Raises:
        DataError: Besides, if an image stands in two splits, or the lists hold another number of
            classes than the set has (or ``num_classes`` says).
    """

    TITLE: ClassVar[str] = 'FGVC'
    SPLITS: ClassVar[tuple[str, ...]] = (*FILES, *JOINED)
    WHERE_FROM: ClassVar[str] = (
        'cdra data prepare makes the folder (NAME ROOT: cub, nabirds, oxford_flowers, '
        'stanford_dogs, stanford_cars): point data_root, or CDRA_FGVC_ROOT for the shipped '
        'configs, to it'
    )

    def __init__(self, *args: Any, image_root: str | None = None, **kwargs: Any) -> None:
        self.image_root = image_root
        super().__init__(*args, **kwargs)

    @classmethod
    def known_classes(cls, folder: str) -> tuple[str, ...] | None:
        """The labels as names: ids of the lists stand for classes that the lists do not name."""
        if folder not in FGVC_SETS:
            return None
        return tuple(map(str, range(FGVC_SETS[folder].num_classes or 0)))

    def read_split(self, root: Path) -> tuple[Path, list[tuple[str, int]]]:
        """Reads and checks all three lists; see `ListedImages.read_split`."""
        lists = {name: self.labels_in(root / f'{name}.json', read_json_list) for name in FILES}
        _require_disjoint(root, lists)
        label_of = self._number_classes(root, lists)
        chosen = JOINED.get(self.split, (self.split,))
        samples = [(path, label_of[id_]) for name in chosen for path, id_ in lists[name].items()]
        return self._image_folder(root, samples[0][0]), samples

    def _number_classes(self, root: Path, lists: dict[str, dict[str, int]]) -> dict[int, int]:
        ids = sorted({id_ for labels in lists.values() for id_ in labels.values()})
        if len(ids) != self.num_classes:
            raise DataError(
                f'the lists in {root} hold {len(ids)} classes (ids {ids[0]} to {ids[-1]}), '
                f'expected {self.num_classes}: complete the lists, or set num_classes={len(ids)} '
                'in the data sets and in the head'
            )
        return {id_: label for label, id_ in enumerate(ids)}

    def _image_folder(self, root: Path, first: str) -> Path:
        known = FGVC_SETS.get(root.name)
        roots = known.image_roots if known else UNKNOWN_SET_ROOTS
        if self.image_root is not None:
            roots = (self.image_root,)
        folders = [root / name for name in roots]
        return next((folder for folder in folders if os.path.isfile(folder / first)), folders[0])


def _require_disjoint(root: Path, lists: dict[str, dict[str, int]]) -> None:
    """Raises where an image is in two splits: figures on the second would mean nothing."""
    home: dict[str, str] = {}
    for name, labels in lists.items():
        for path in labels:
            first = home.setdefault(os.path.normpath(path), name)
            if first != name:
                raise DataError(
                    f'{path} stands in {first}.json and in {name}.json of {root}: '
                    'take it out of one of them'
                )
