"""CUB-200-2011 and NABirds, which share one set of text files.

images.txt               id  path below images/
image_class_labels.txt   id  class
train_test_split.txt     id  1 for training, 0 for test
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cdra_mm.errors import DataError

from .fgvc import move_into, write_lists
from .unpack import unpack

__all__ = ['convert_birds']


def convert_birds(files: Mapping[str, Path], out: Path, *, inside: str, entry: str) -> None:
    """Unpack the archive and write the JSON lists beside its own.

    Args:
        files: The archive, under any name.
        out: Folder in which to make the entry.
        inside: Folder within the archive.
        entry: Folder of the data set in ``out``.

    Raises:
        DataError: If the archive cannot be unpacked or its lists contradict each other.
    """
    (archive,) = files.values()
    unpack(archive, out / 'unpacked', inside=inside)
    move_into(out / 'unpacked', out / entry)
    paths = _table(out / entry / 'images.txt')
    classes = _table(out / entry / 'image_class_labels.txt')
    training = _table(out / entry / 'train_test_split.txt')
    labels: dict[str, dict[str, int]] = {'train': {}, 'test': {}}
    for key, path in paths.items():
        if key not in classes or training.get(key) not in ('0', '1'):
            raise DataError(f'{archive}: image {key} of images.txt has no class or no split')
        if not classes[key].isdecimal():
            raise DataError(f'{archive}: image {key} has class {classes[key]!r}, not a number')
        labels['train' if training[key] == '1' else 'test'][path] = int(classes[key])
    write_lists(out / entry, labels)


def _table(path: Path) -> dict[str, str]:
    """A text file of two columns."""
    if not path.is_file():
        raise DataError(f'the archive lacks {path.name}')
    table = {}
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        fields = line.split(maxsplit=1)
        if len(fields) == 1:
            raise DataError(f'{path.name}:{number}: expected two columns, got {line!r}')
        if fields:
            table[fields[0]] = fields[1].strip()
    return table
