"""Counting what is there of a data set, split by split."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import DataError
from .sources import Source, Split, find_source

__all__ = ['Report', 'SplitState', 'check']

IMAGE_SUFFIX = '.jpg'
LABEL_SUFFIX = '.png'

AUG_HINT = (
    'SegmentationClassAug, the larger training set, is not there (optional). It has no stable '
    'address: bring the SBD data (benchmark.tgz of its authors), unpack it so that '
    '{root}/VOCdevkit/VOCaug/dataset/cls exists, and run '
    "mmsegmentation's tools/dataset_converters/voc_aug.py {root}/VOCdevkit {root}/VOCdevkit/VOCaug"
)


@dataclass(frozen=True)
class SplitState:
    """What is there of a split.

    Attributes:
        split: What should be there.
        images: Number of its images that exist and are not empty.
        labels: Number of its label maps that exist and are not empty.
        pairs: Number of images that have their label map.
    """

    split: Split
    images: int
    labels: int
    pairs: int

    @property
    def complete(self) -> bool:
        """Whether every published image is there, and none lacks its label map."""
        return self.pairs >= self.split.count and self.pairs == self.images

    def line(self) -> str:
        """One line of the table that the tool prints."""
        want = self.split.count
        return (
            f'  {self.split.name:<10} {self.images:>6} of {want:>6} images'
            f'  {self.labels:>6} of {want:>6} labels'
        )


@dataclass(frozen=True)
class Report:
    """What is there of a data set.

    Attributes:
        source: The data set.
        root: The folder that was looked into.
        states: One entry a split.
        notes: Sentences on optional parts.
    """

    source: Source
    root: Path
    states: tuple[SplitState, ...]
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every split is complete."""
        return all(state.complete for state in self.states)

    def problem(self) -> str:
        """What is missing, in one line; empty for a complete data set."""
        if self.complete:
            return ''
        if not any(state.images or state.labels for state in self.states):
            folders = ', '.join(str(self.root / entry) for entry in self.source.entries)
            return f'nothing of {self.source.name} is there ({folders})'
        lacking = [state for state in self.states if not state.complete]
        return f'{self.source.name} in {self.root} is not complete: ' + '; '.join(
            f'{s.split.name} has {s.images} images, {s.labels} labels, {s.pairs} of '
            f'{s.split.count} pairs'
            for s in lacking
        )

    def lines(self) -> list[str]:
        """The table that the tool prints: a heading, a line a split, the notes."""
        heading = f'{self.source.name} in {self.root}: {self.source.title}'
        return [heading, *(state.line() for state in self.states), *self.notes]


def check(name: str, root: str | Path) -> Report:
    """Count the images and label maps of each split of a data set.

    Files are counted, not decoded; an empty file counts as missing.

    Args:
        name: A key of :data:`~cdra_mm.data.SOURCES`.
        root: The folder that was given to :func:`~cdra_mm.data.prepare`.

    Returns:
        The counts, and whether they are complete.

    Raises:
        DataError: If the data set is unknown, or the record of a generated one is damaged.
    """
    source, root = find_source(name), Path(root)
    if source.name == 'demo':
        source = _generated_counts(source, root)
    states = tuple(_state(root, split) for split in source.splits)
    notes: tuple[str, ...] = ()
    voc = root / 'VOCdevkit/VOC2012'
    if source.name == 'voc' and voc.is_dir() and not (voc / 'SegmentationClassAug').is_dir():
        notes = ('note: ' + AUG_HINT.format(root=root),)
    return Report(source, root, states, notes)


def _generated_counts(source: Source, root: Path) -> Source:
    """The demo data as its own record says it was made; as by default when there is none."""
    record = root / 'demo.json'
    if not record.is_file():
        return source
    try:
        counts = json.loads(record.read_text(encoding='utf-8'))['counts']
        splits = tuple(replace(split, count=int(counts[split.name])) for split in source.splits)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{record} is damaged ({error!r}): delete the data set and make it again'
        ) from error
    return replace(source, splits=splits)


def _state(root: Path, split: Split) -> SplitState:
    images = _stems(root / split.images, IMAGE_SUFFIX)
    labels = _stems(root / split.labels, LABEL_SUFFIX)
    if split.list_file:
        path = root / split.list_file
        listed = set(path.read_text(encoding='utf-8').split()) if path.is_file() else set()
        images &= listed
        labels &= listed
    return SplitState(split, len(images), len(labels), len(images & labels))


def _stems(folder: Path, suffix: str) -> set[str]:
    """File names without their suffix, of the files that are not empty."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {
            entry.name.removesuffix(suffix)
            for entry in entries
            if entry.name.endswith(suffix) and entry.is_file() and entry.stat().st_size > 0
        }
