"""What a data set on disk consists of: samples, and what is wrong with them.

A :class:`Split` knows how one split lies in its folder and reads it into a :class:`Listing`. There
are three layouts: label maps beside images (`pairs`), a text file of paths and labels (`listed`),
and a JSON object of them (`listed`). Nothing here opens an image: `inspection` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

__all__ = ['Fault', 'Listing', 'Sample', 'Split', 'file_fault']


@dataclass(frozen=True)
class Sample:
    """An image with its label, which is a class id or a map of them.

    Attributes:
        image: The image.
        label: Class id as the list states it; ``None`` where there is a label map.
        label_map: Image of class ids; ``None`` where there is a label.
    """

    image: Path
    label: int | None = None
    label_map: Path | None = None


@dataclass(frozen=True)
class Fault:
    """Something wrong: the file (with its line, where it has one) and what is wrong with it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f'{self.where} {self.what}'


@dataclass(frozen=True)
class Listing:
    """What was found of a split.

    Attributes:
        samples: The usable samples: all of their files are there and not empty.
        faults: Missing and empty files, malformed lines.
        images: Number of images that are there and not empty.
        labels: Number of label maps that are there and not empty; ``None`` where labels are ids.
    """

    samples: tuple[Sample, ...] = ()
    faults: tuple[Fault, ...] = ()
    images: int = 0
    labels: int | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a data set; the layouts derive from it.

    Attributes:
        name: The split's own name, as configs write it.
        count: Number of samples in the published split; ``None`` where none is known.
        part: Folder of the part of the data set that it belongs to, such as a task; may be empty.
        group: Splits of a part with the same group are counted together, for data sets of which
            only the sum is published; the split's name by default.
        num_classes: Number of class ids; ``None`` where it is not known.
    """

    name: str
    count: int | None
    part: str = ''
    group: str = ''
    num_classes: int | None = None

    exact: ClassVar[bool] = False
    """Whether more samples than published are as wrong as fewer."""

    def read(self, root: Path) -> Listing:
        """What is there of the split below the root folder of the data set."""
        raise NotImplementedError

    def compare(self, root: Path, siblings: Sequence[tuple[Split, Listing]]) -> list[Fault]:
        """What is wrong between the splits of one part; called on one of them."""
        return []


def file_fault(path: Path) -> Fault | None:
    """What is wrong with a file that should be there, without reading it."""
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:
        return Fault(str(path), f'cannot be read ({error.strerror})')
    if size is None:
        return Fault(str(path), 'is not there')
    return None if size else Fault(str(path), 'is empty (0 bytes)')
