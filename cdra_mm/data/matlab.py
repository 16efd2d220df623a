"""Oxford Flowers, Stanford Dogs and Stanford Cars, whose lists are MATLAB files.

| set | images | lists |
|---|---|---|
| Flowers | ``jpg/image_00001.jpg`` ... | ``imagelabels.mat``; ``setid.mat`` numbers them from 1 |
| Dogs | ``Images/<breed>/<file>.jpg`` | ``train_list.mat``, ``test_list.mat``: paths and labels |
| Cars | ``cars_train/``, ``cars_test/`` | one record an image: file name and class |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cdra_mm.errors import DataError

from .fgvc import move_into, write_lists
from .optional import optional_module
from .unpack import unpack

__all__ = ['convert_cars', 'convert_dogs', 'convert_flowers']

CARS_TEST = 'cars_test_annos_withlabels.mat'


def convert_flowers(files: Mapping[str, Path], out: Path) -> None:
    """Unpack Oxford Flowers and write its lists, with the publisher's own validation split.

    Raises:
        DataError: If a file is damaged or does not fit the others.
    """
    folder = _unpacked(files['102flowers.tgz'], out, 'OxfordFlowers')
    labels = _load(files['imagelabels.mat'], 'labels')['labels']
    sets = _load(files['setid.mat'], 'trnid', 'valid', 'tstid')
    if max(int(n) for numbers in sets.values() for n in numbers) > len(labels):
        raise DataError(f'{files["setid.mat"]} numbers more images than have labels')
    write_lists(
        folder,
        {
            name: {f'jpg/image_{int(n):05d}.jpg': int(labels[int(n) - 1]) for n in sets[key]}
            for name, key in (('train', 'trnid'), ('val', 'valid'), ('test', 'tstid'))
        },
    )


def convert_dogs(files: Mapping[str, Path], out: Path) -> None:
    """Unpack Stanford Dogs and write its lists.

    Raises:
        DataError: If a file is damaged or does not fit the others.
    """
    folder = _unpacked(files['images.tar'], out, 'StanfordDogs')
    lists = _unpacked(files['lists.tar'], out, 'lists')
    labels = {}
    for split in ('train', 'test'):
        record = _load(lists / f'{split}_list.mat', 'file_list', 'labels')
        labels[split] = _paired(record['file_list'], record['labels'], lists / f'{split}_list.mat')
    write_lists(folder, labels)


def convert_cars(files: Mapping[str, Path], out: Path) -> None:
    """Unpack Stanford Cars and write its lists.

    Args:
        files: ``cars_train.tgz``, ``cars_test.tgz``, ``car_devkit.tgz`` and
            ``cars_test_annos_withlabels.mat``.
        out: Folder in which to make ``StanfordCars``.

    Raises:
        DataError: If a file is damaged or does not fit the others.
    """
    for name in ('cars_train.tgz', 'cars_test.tgz', 'car_devkit.tgz'):
        folder = _unpacked(files[name], out, 'StanfordCars')
    labels = {}
    for split, path in (
        ('train', folder / 'devkit/cars_train_annos.mat'),
        ('test', files[CARS_TEST]),
    ):
        records = _load(path, 'annotations')['annotations']
        if not {'fname', 'class'} <= set(records.dtype.names or ()):
            raise DataError(f'{path} has no file names or no classes')
        names = [f'cars_{split}/{name}' for name in records['fname']]
        labels[split] = _paired(names, records['class'], path)
    write_lists(folder, labels)


def _unpacked(archive: Path, out: Path, entry: str) -> Path:
    """The entry, with what the archive holds."""
    temporary = out / 'unpacked' / archive.name
    temporary.parent.mkdir(exist_ok=True)
    unpack(archive, temporary)
    move_into(temporary, out / entry)
    return out / entry


def _load(path: Path, *names: str) -> dict[str, Any]:
    """Variables of a MATLAB file, each as a flat array."""
    scipy = optional_module('scipy.io', 'scipy')
    numpy = optional_module('numpy', 'numpy')
    try:
        content = scipy.loadmat(path, squeeze_me=True)
    except FileNotFoundError as error:
        raise DataError(f'the archive lacks {path.name}') from error
    except Exception as error:  # its reader raises anything on a damaged file
        raise DataError(f'{path} is no MATLAB file that can be read: {error}') from error
    missing = [name for name in names if name not in content]
    if missing:
        raise DataError(f'{path} lacks {", ".join(missing)}')
    return {name: numpy.atleast_1d(content[name]) for name in names}


def _paired(names: Iterable[Any], labels: Iterable[Any], path: Path) -> dict[str, int]:
    names, labels = list(names), list(labels)
    if len(names) != len(labels):
        raise DataError(f'{path} has {len(names)} names, but {len(labels)} labels')
    return {str(name): int(label) for name, label in zip(names, labels, strict=True)}
