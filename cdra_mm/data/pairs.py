"""Images and label maps in two folders, as semantic segmentation has them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .layout import Fault, Listing, Sample, Split

__all__ = ['PairSplit']

IMAGE_SUFFIX = '.jpg'
LABEL_SUFFIX = '.png'


@dataclass(frozen=True, kw_only=True)
class PairSplit(Split):
    """A split of images with label maps.

    Attributes:
        images: Folder of the images, relative to the root.
        labels: Folder of the label maps; a label has its image's file name but for the suffix.
        list_file: Text file with one image stem a line, for splits that share their folders.
        void: Ids beside ``0 .. num_classes - 1`` that a label map may hold.
    """

    images: str
    labels: str
    list_file: str = ''
    void: tuple[int, ...] = ()

    def read(self, root: Path) -> Listing:
        """What is there of the split; a label map without an image counts for nothing."""
        images = _sizes(root / self.images, IMAGE_SUFFIX)
        labels = _sizes(root / self.labels, LABEL_SUFFIX)
        faults: list[Fault] = []
        stems: Iterable[str] = sorted(images)
        if self.list_file:
            stems = _listed(root / self.list_file, faults)
            labels = {stem: labels[stem] for stem in stems if stem in labels}
            images = {stem: images[stem] for stem in stems if stem in images}
        samples = []
        for stem in stems:
            image = root / self.images / (stem + IMAGE_SUFFIX)
            label = root / self.labels / (stem + LABEL_SUFFIX)
            found = [
                fault
                for path, size in ((image, images.get(stem)), (label, labels.get(stem)))
                if (fault := _fault(path, size))
            ]
            faults += found
            if not found:
                samples.append(Sample(image, label_map=label))
        return Listing(
            tuple(samples),
            tuple(faults),
            images=sum(size > 0 for size in images.values()),
            labels=sum(size > 0 for size in labels.values()),
        )


def _sizes(folder: Path, suffix: str) -> dict[str, int]:
    """Lengths in bytes of a folder's files, by name without suffix."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {
            entry.name.removesuffix(suffix): entry.stat().st_size
            for entry in entries
            if entry.name.endswith(suffix) and entry.is_file()
        }


def _fault(path: Path, size: int | None) -> Fault | None:
    if size is None:
        return Fault(str(path), 'is not there')
    return None if size else Fault(str(path), 'is empty (0 bytes)')


def _listed(path: Path, faults: list[Fault]) -> list[str]:
    """The stems that a list names, once each; adds what is wrong with the list to ``faults``."""
    if not path.is_file():
        faults.append(Fault(str(path), 'is not there'))
        return []
    stems: dict[str, int] = {}
    text = path.read_text(encoding='utf-8', errors='replace')
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if len(fields) > 1 or (fields and os.sep in fields[0]):
            faults.append(Fault(f'{path}:{number}', f'expected one name of an image, got {line!r}'))
        elif fields and fields[0] in stems:
            what = f'names {fields[0]}, as line {stems[fields[0]]} does'
            faults.append(Fault(f'{path}:{number}', what))
        elif fields:
            stems[fields[0]] = number
    return list(stems)
