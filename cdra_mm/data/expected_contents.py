"""What a particular folder changes of what a data set is expected to hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cdra_mm.errors import DataError
from cdra_mm.storage.strict_json import strict_json

from .layout import Split

__all__ = ['ExpectedContents', 'fit_demo', 'fit_voc']

AUG_HINT = (
    'SegmentationClassAug, the larger training set, is not there (optional). It has no stable '
    'address: bring the SBD data (benchmark.tgz of its authors), unpack it so that '
    '{root}/VOCdevkit/VOCaug/dataset/cls exists, and run '
    "mmsegmentation's tools/dataset_converters/voc_aug.py {root}/VOCdevkit {root}/VOCdevkit/VOCaug"
)


@dataclass(frozen=True)
class ExpectedContents:
    """What a particular folder changes of what a data set is expected to hold.

    Attributes:
        splits: The splits to expect.
        entries: The entries to expect; ``None`` leaves them.
        notes: Sentences for the listing.
    """

    splits: tuple[Split, ...]
    entries: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def fit_demo(splits: tuple[Split, ...], root: Path) -> ExpectedContents:
    """The demo data as its own record says it was made; as by default when there is none.

    Raises:
        DataError: If the record is damaged.
    """
    record = root / 'demo.json'
    if not record.is_file():
        return ExpectedContents(splits)
    try:
        counts = strict_json(record.read_text(encoding='utf-8'))['counts']
        return ExpectedContents(
            tuple(replace(split, count=int(counts[split.name])) for split in splits)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{record} is damaged ({error!r}): delete the data set and make it again'
        ) from error


def fit_voc(splits: tuple[Split, ...], root: Path) -> ExpectedContents:
    """Nothing changes for VOC, but the missing optional part is explained."""
    voc = root / 'VOCdevkit/VOC2012'
    if voc.is_dir() and not (voc / 'SegmentationClassAug').is_dir():
        return ExpectedContents(splits, notes=('note: ' + AUG_HINT.format(root=root),))
    return ExpectedContents(splits)
