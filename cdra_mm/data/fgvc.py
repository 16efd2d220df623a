"""The JSON lists of the fine-grained data sets: ``{"relative/path.jpg": class id}`` a split.

The layout is that of Visual Prompt Tuning (Jia et al. 2022), whose own lists can be put in place of
ours: ``train.json``, ``val.json`` and ``test.json`` that are there already, in the data set's
folder or beside the archives, are kept. Where a publisher has no validation split a tenth of the
training images is held out, as VPT does it; which images it holds out is its own draw, so that
results for choosing settings differ by chance. Final runs train on train and val together.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from cdra_mm.errors import DataError

from .listed import JsonSplit

__all__ = ['LISTS', 'fgvc_splits', 'hold_out', 'move_into', 'write_lists']

SPLITS = ('train', 'val', 'test')
LISTS = tuple(f'{name}.json' for name in SPLITS)
SEED = 0
HELD_OUT = 0.1


def fgvc_splits(
    folder: str,
    counts: tuple[int, int, int],
    num_classes: int,
    image_roots: tuple[str, ...],
) -> tuple[JsonSplit, ...]:
    """The three splits of a data set; train and val are counted together."""
    return tuple(
        JsonSplit(
            name=name,
            count=count,
            part=folder,
            group='test' if name == 'test' else 'train+val',
            num_classes=num_classes,
            image_roots=image_roots,
        )
        for name, count in zip(SPLITS, counts, strict=True)
    )


def hold_out(train: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Cut a tenth off the training images for validation, by a shuffle with a fixed seed.

    Args:
        train: Class id by path.

    Returns:
        ``train`` and ``val``, each sorted by path.

    Example:
        >>> cut = hold_out({f'{i}.jpg': 0 for i in range(20)})
        >>> len(cut['train']), len(cut['val'])
        (18, 2)
    """
    names = sorted(train)
    random.Random(SEED).shuffle(names)
    val = set(names[: round(HELD_OUT * len(names))])
    return {
        'train': {name: train[name] for name in sorted(train) if name not in val},
        'val': {name: train[name] for name in sorted(val)},
    }


def write_lists(folder: Path, labels: Mapping[str, Mapping[str, int]]) -> None:
    """Write the lists of a data set, unless it has its own.

    Args:
        folder: The data set's folder.
        labels: The publisher's class id by path, for each split; without ``'val'`` it is cut off
            ``'train'``. Ids are numbered 0 .. N-1 over the sorted union of all splits.

    Raises:
        DataError: If one or two of the lists are there: their splits and ours would overlap.
    """
    present = [name for name in LISTS if (folder / name).is_file()]
    if len(present) == len(LISTS):
        return
    if present:
        raise DataError(
            f'{" and ".join(present)} without the rest of {", ".join(LISTS)}: keep all or none'
        )
    splits = dict(labels)
    if 'val' not in splits:
        splits |= hold_out(labels['train'])
    union = sorted({label for split in splits.values() for label in split.values()})
    number = {label: position for position, label in enumerate(union)}
    for name in SPLITS:
        content = {path: number[label] for path, label in splits[name].items()}
        text = json.dumps(content, indent=0, ensure_ascii=False)
        (folder / f'{name}.json').write_text(text + '\n', encoding='utf-8')


def move_into(source: Path, folder: Path) -> None:
    """Move what an unpacked folder holds into another, made when missing; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if not (folder / path.name).exists():
            path.rename(folder / path.name)
