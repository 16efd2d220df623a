"""Tiny archives in the real layout of each publisher of a fine-grained data set."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

CLASSES = 3
TRAIN = 10  # images, of which one is held out for validation where there is no split
TEST = 4


def tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, 'w:gz' if path.name.endswith('gz') else 'w') as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def mat(**variables: Any) -> bytes:
    out = io.BytesIO()
    savemat(out, variables)
    return out.getvalue()


def cells(names: list[str]) -> np.ndarray:
    """A MATLAB cell array of texts, ``[N, 1]``."""
    array = np.empty((len(names), 1), dtype=object)
    array[:, 0] = names
    return array


def cub(folder: Path, image: bytes) -> None:
    tar(folder / 'CUB_200_2011.tgz', {'attributes.txt': b'x', **birds('CUB_200_2011', image, 1)})


def nabirds(folder: Path, image: bytes) -> None:
    tar(folder / 'nabirds.tar.gz', birds('nabirds', image, 295))


def birds(top: str, image: bytes, first_class: int) -> dict[str, bytes]:
    """Ids are sparse in NABirds: 555 of its 1011 nodes are classes of images."""
    files, tables = {}, {'images': '', 'image_class_labels': '', 'train_test_split': ''}
    for i in range(TRAIN + TEST):
        label = first_class + 7 * (i % CLASSES)
        path = f'{label:03d}.A_bird/bird_{i}.jpg'
        files[f'{top}/images/{path}'] = image
        tables['images'] += f'id-{i} {path}\n'
        tables['image_class_labels'] += f'id-{i} {label}\n'
        tables['train_test_split'] += f'id-{i} {int(i < TRAIN)}\n'
    return files | {f'{top}/{name}.txt': text.encode() for name, text in tables.items()}


def oxford_flowers(folder: Path, image: bytes) -> None:
    names = [f'jpg/image_{i:05d}.jpg' for i in range(1, TRAIN + TEST + 1)]
    tar(folder / '102flowers.tgz', dict.fromkeys(names, image))
    labels = np.array([[1 + i % CLASSES for i in range(TRAIN + TEST)]], dtype=np.uint8)
    (folder / 'imagelabels.mat').write_bytes(mat(labels=labels))
    numbers = np.arange(1, TRAIN + TEST + 1, dtype=np.uint16)[None]
    sets = {'trnid': numbers[:, 1:TRAIN], 'valid': numbers[:, :1], 'tstid': numbers[:, TRAIN:]}
    (folder / 'setid.mat').write_bytes(mat(**sets))


def stanford_dogs(folder: Path, image: bytes) -> None:
    files, lists = {}, {}
    for split, count in (('train', TRAIN), ('test', TEST)):
        names = [f'n{i % CLASSES}-Dog/{split}_{i}.jpg' for i in range(count)]
        files |= {f'Images/{name}': image for name in names}
        labels = np.array([[1 + i % CLASSES] for i in range(count)], dtype=np.uint8)
        lists[f'{split}_list.mat'] = mat(file_list=cells(names), labels=labels)
    tar(folder / 'images.tar', files)
    tar(folder / 'lists.tar', {**lists, 'file_list.mat': b'not read'})


def stanford_cars(folder: Path, image: bytes) -> None:
    kinds = [(name, object) for name in ('bbox_x1', 'class', 'fname')]
    records = {}
    for split, count in (('train', TRAIN), ('test', TEST)):
        rows = [(7, 1 + i % CLASSES, f'{i + 1:05d}.jpg') for i in range(count)]
        records[split] = mat(annotations=np.array([rows], dtype=kinds))
        files = {f'cars_{split}/{name}': image for _, _, name in rows}
        tar(folder / f'cars_{split}.tgz', files)
    (folder / 'cars_test_annos_withlabels.mat').write_bytes(records['test'])
    tar(folder / 'car_devkit.tgz', {'devkit/cars_train_annos.mat': records['train']})


PUBLISHERS: dict[str, Callable[[Path, bytes], None]] = {
    'cub': cub,
    'nabirds': nabirds,
    'oxford_flowers': oxford_flowers,
    'stanford_dogs': stanford_dogs,
    'stanford_cars': stanford_cars,
}
