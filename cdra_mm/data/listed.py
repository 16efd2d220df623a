"""Images with class ids in a list: VTAB-1k's text files and the JSON files of the FGVC sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .layout import Fault, Listing, Sample, Split, file_fault
from .list_files import ListFile, read_json_list, read_text_list

__all__ = ['JsonSplit', 'ListSplit']


@dataclass(frozen=True, kw_only=True)
class ListSplit(Split):
    """A split of ``<part>/<name>.txt``: a path relative to the part, a space, a zero-based id."""

    exact: ClassVar[bool] = True

    def read(self, root: Path) -> Listing:
        """What is there of the split."""
        folder = root / self.part
        path = folder / f'{self.name}.txt'
        if fault := file_fault(path):
            return Listing(faults=(fault,))
        return _usable(folder, read_text_list(path, self.num_classes))


@dataclass(frozen=True, kw_only=True)
class JsonSplit(Split):
    """A split of ``<part>/<name>.json``: one object of paths and class ids.

    The ids may be any integers; readers number them 0 .. N-1 over the sorted union of all splits.

    Attributes:
        image_roots: Folders of the part to which the paths may be relative; the first one that
            holds the first image counts.
    """

    image_roots: tuple[str, ...] = ('',)

    exact: ClassVar[bool] = True

    def read(self, root: Path) -> Listing:
        """What is there of the split."""
        folder = root / self.part
        path = folder / f'{self.name}.json'
        if fault := file_fault(path):
            return Listing(faults=(fault,))
        found = read_json_list(path)
        roots = [folder / root for root in self.image_roots]
        first = next(iter(found.labels), '')
        held = (place for place in roots if os.path.isfile(place / first))
        return _usable(next(held, roots[0]), found)

    def compare(self, root: Path, siblings: Sequence[tuple[Split, Listing]]) -> list[Fault]:
        """Images that are in two splits, and a number of classes that is not the published one."""
        folder = root / self.part
        faults = []
        owner: dict[Path, str] = {}
        for split, listing in siblings:
            shared = [s.image for s in listing.samples if s.image in owner]
            faults += [
                Fault(str(image), f'is in {owner[image]} and in {split.name}') for image in shared
            ]
            owner.update((sample.image, split.name) for sample in listing.samples)
        ids = {sample.label for _, listing in siblings for sample in listing.samples}
        if owner and self.num_classes is not None and len(ids) != self.num_classes:
            what = f'has {len(ids)} different class ids in its lists, expected {self.num_classes}'
            faults.append(Fault(str(folder), what))
        return faults


def _usable(folder: Path, found: ListFile) -> Listing:
    """The entries of a list whose image is there, and what is wrong with others."""
    faults, samples = list(found.faults), []
    for name, label in found.labels.items():
        if fault := file_fault(folder / name):
            faults.append(fault)
        else:
            samples.append(Sample(folder / name, label))
    return Listing(tuple(samples), tuple(faults), images=len(samples))
