"""Images with class ids in a list: VTAB-1k's text files and the JSON files of the FGVC sets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .layout import Fault, Listing, Sample, Split, file_fault

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
        try:
            lines = path.read_text(encoding='utf-8-sig').splitlines()
        except UnicodeDecodeError as error:
            return Listing(faults=(Fault(str(path), f'is not UTF-8 text (byte {error.start})'),))
        entries: list[tuple[str, str, int]] = []
        faults: list[Fault] = []
        for number, line in enumerate(lines, 1):
            where = f'{path}:{number}'
            # Paths may contain spaces: the label is what follows the last one.
            fields = line.strip().rsplit(maxsplit=1)
            if not fields:
                continue
            # Longer digits are no label, and int() refuses very long ones in its own words.
            if len(fields) != 2 or not re.fullmatch(r'-?[0-9]{1,9}', fields[1]):
                faults.append(Fault(where, f'expected "path label", got {line.strip()!r:.200}'))
                continue
            label = int(fields[1])
            if label < 0 or (self.num_classes is not None and label >= self.num_classes):
                last = '' if self.num_classes is None else f' to {self.num_classes - 1}'
                faults.append(Fault(where, f'has label {label}, expected 0{last}'))
                continue
            entries.append((where, fields[0], label))
        return _usable(folder, entries, faults)


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
        try:
            # Pairs, not a dict: it would hide a path that is listed twice.
            content = json.loads(path.read_text(encoding='utf-8-sig'), object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            return Listing(faults=(Fault(str(path), f'is no JSON ({error})'),))
        if not isinstance(content, _Pairs):
            what = f'holds a {type(content).__name__}, expected an object of paths and class ids'
            return Listing(faults=(Fault(str(path), what),))
        entries: list[tuple[str, str, int]] = []
        faults: list[Fault] = []
        for name, label in content:
            if isinstance(label, int) and not isinstance(label, bool):
                entries.append((str(path), name, label))
            else:
                what = f'gives {name!r} the class {label!r}, expected an integer'
                faults.append(Fault(str(path), what))
        return _usable(self._image_root(folder, entries), entries, faults)

    def _image_root(self, folder: Path, entries: Sequence[tuple[str, str, int]]) -> Path:
        roots = [folder / root for root in self.image_roots]
        first = entries[0][1] if entries else ''
        return next((root for root in roots if os.path.isfile(root / first)), roots[0])

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


class _Pairs(list[tuple[str, Any]]):
    """The items of a JSON object, in order and with repetitions."""


def _usable(folder: Path, entries: Sequence[tuple[str, str, int]], faults: list[Fault]) -> Listing:
    """The (where, path, label) entries whose image is there, and what is wrong with others."""
    samples = []
    seen: dict[str, str] = {}
    for where, name, label in entries:
        key = os.path.normpath(name)
        if os.path.isabs(name) or '\0' in name or key.split(os.sep)[0] == os.pardir:
            faults.append(Fault(where, f'names {name!r}, which leaves {folder}'))
        elif key in seen:
            faults.append(Fault(where, f'names {name} a second time'))
        elif fault := file_fault(folder / name):
            faults.append(fault)
        else:
            samples.append(Sample(folder / name, label))
        seen[key] = where
    return Listing(tuple(samples), tuple(faults), images=len(samples))
