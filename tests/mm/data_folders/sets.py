"""Folders of images and labels as users have them: each right set with one thing changed.

A case says what comes of it: `early`, part of the error before a run; `found`, part of what the
check of every file says; `warned`, part of a warning before a run. Nothing else may happen.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

import cdra_mm.mm.datasets  # noqa: F401 - registers them

from .. import toy

HEIGHT, WIDTH, TRAIN, VAL = 24, 32, 6, 3


@dataclass(frozen=True)
class Case:
    """A folder with one thing changed, and what comes of it."""

    name: str
    change: Callable[[Path, Config], Any]
    early: str = ''
    found: str = ''
    warned: str = ''


SEGMENTATION: list[Case] = []
CLASSIFICATION: list[Case] = []


def case(cases: list[Case], name: str, **outcome: str):
    """Keeps a function that changes a folder, or its config, as a case."""

    def keep(change: Callable[[Path, Config], Any]) -> Callable[[Path, Config], Any]:
        cases.append(Case(name, change, **outcome))
        return change

    return keep


# The right sets.


def pixels(n: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """An image and its map of class ids; every class is in every map."""
    rng = np.random.default_rng(n)
    labels = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 8 % classes).astype(np.uint8)
    image = rng.integers(0, 80, (HEIGHT, WIDTH, 3)) + 60 * labels[..., None]
    return image.astype(np.uint8), labels


def segmentation(folder: Path) -> Config:
    """Six training and three validation pairs, and a config that trains on them."""
    for split, count in (('train', TRAIN), ('val', VAL)):
        for kind in ('images', 'masks'):
            (folder / kind / split).mkdir(parents=True)
        for n in range(count):
            image, labels = pixels(n)
            Image.fromarray(image).save(folder / 'images' / split / f'{n}.jpg')
            Image.fromarray(labels).save(folder / 'masks' / split / f'{n}.png')
    size = (16, 16)
    training = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='RandomCrop', crop_size=size),
        dict(type='PackSegInputs'),
    ]
    testing = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    testing.append(dict(type='PackSegInputs'))

    def loader(split: str, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
        return dict(
            batch_size=2 if split == 'train' else 1,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(
                type='BaseSegDataset',
                serialize_data=False,  # which collects garbage: most of the time of a case
                data_root=str(folder),
                data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'masks/{split}'),
                metainfo=dict(classes=('a', 'b', 'c'), palette=[[0] * 3, [9] * 3, [99] * 3]),
                pipeline=pipeline,
            ),
        )

    cfg = toy.config(
        folder,
        train_dataloader=loader('train', training),
        val_dataloader=loader('val', testing),
        test_dataloader=loader('val', testing),
    )
    cfg.model.data_preprocessor.size = size
    cfg.model.decode_head.num_classes = 3
    return cfg


def classification(folder: Path) -> Config:
    """Three class folders for training and for validation, and a config that trains on them."""
    for split, count in (('train', 2), ('val', 1)):
        for label in range(3):
            (folder / split / f'class {label}').mkdir(parents=True)
            for n in range(count):
                image, _ = pixels(n + label)
                Image.fromarray(image).save(folder / split / f'class {label}' / f'{n}.jpg')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 32))]
    pipeline.append(dict(type='PackInputs'))

    def loader(split: str) -> dict[str, Any]:
        return dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(
                type='CustomDataset',
                serialize_data=False,
                data_root=str(folder),
                data_prefix=split,
                pipeline=pipeline,
            ),
        )

    cfg = toy.config(
        folder,
        'cls',
        train_dataloader=loader('train'),
        val_dataloader=loader('val'),
        test_dataloader=loader('val'),
    )
    cfg.model.head.num_classes = 3
    return cfg


# What is changed.


def image(folder: Path, n: int = 1, split: str = 'train') -> Path:
    return folder / 'images' / split / f'{n}.jpg'


def mask(folder: Path, n: int = 1, split: str = 'train') -> Path:
    return folder / 'masks' / split / f'{n}.png'


def every_mask(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in sorted((folder / 'masks').rglob('*.png')):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def renamed(folder: Path, kind: str, suffix: str, end: str = '.*') -> None:
    for path in sorted((folder / kind).rglob('*')):
        if path.is_file():
            path.rename(path.with_name(path.stem + suffix))


def stored_as(path: Path, picture: Image.Image, kind: str, **options: Any) -> None:
    """A picture of any kind under a name that stays."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    path.write_bytes(buffer.getvalue())


def listed(folder: Path, cfg: Config, text: bytes) -> None:
    (folder / 'list.txt').write_bytes(text)
    cfg.train_dataloader.dataset.ann_file = 'list.txt'


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has this size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'IDAT', zlib.compress(b'\0' * 99))
        + chunk(b'IEND', b'')
    )


def two_classes(cfg: Config) -> None:
    cfg.model.decode_head.num_classes = 2
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.metainfo = dict(classes=('a', 'b'))
