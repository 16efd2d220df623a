"""Folders of images and labels as users have them: each right set with one thing changed.

A case says what comes of it: `early`, part of the error before a run; `found`, part of what the
check of every file says; `warned`, part of a warning before a run. Nothing else may happen.
"""

from __future__ import annotations

import io
import os
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

from . import toy

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


seg = SEGMENTATION

case(seg, 'as it should be')(lambda folder, cfg: None)

for _suffix in ('.jpeg', '.JPG', '.png', '.tif'):
    case(
        seg,
        f'images that end in {_suffix}',
        early=f"img_suffix='{_suffix}'",
        found=f"img_suffix='{_suffix}'",
    )(lambda folder, cfg, suffix=_suffix: renamed(folder, 'images', suffix))

for _suffix in ('.PNG', '_mask.png', '.tif', '.bmp'):
    case(
        seg,
        f'masks that end in {_suffix}',
        early=f"seg_map_suffix='{_suffix}'",
        found=f"seg_map_suffix='{_suffix}'",
    )(lambda folder, cfg, suffix=_suffix: renamed(folder, 'masks', suffix))


@case(seg, 'no image at all', early='is empty', found='is empty')
def _(folder, cfg):
    for path in (folder / 'images/train').iterdir():
        path.unlink()


@case(seg, 'no mask at all', early='its folder holds nothing', found='its folder holds nothing')
def _(folder, cfg):
    for path in (folder / 'masks/train').iterdir():
        path.unlink()


@case(seg, 'no validation image', early='is empty', found='is empty')
def _(folder, cfg):
    for path in (folder / 'images/val').iterdir():
        path.unlink()


@case(seg, 'a folder of masks that is missing', early='does not exist', found='does not exist')
def _(folder, cfg):
    (folder / 'masks/train').rename(folder / 'masks/training')


@case(seg, 'images and masks in one folder')
def _(folder, cfg):
    for path in sorted((folder / 'masks').rglob('*.png')):
        path.rename(folder / 'images' / path.parent.name / path.name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_prefix.seg_map_path = loader.dataset.data_prefix.img_path


@case(seg, 'an image without a mask', early='1.png does not exist', found='1.png does not exist')
def _(folder, cfg):
    mask(folder).unlink()


@case(seg, 'a mask without an image', warned='1.png has no image')
def _(folder, cfg):
    image(folder).unlink()


@case(seg, 'an empty image file', early='is empty (0 bytes)', found='is empty (0 bytes)')
def _(folder, cfg):
    image(folder).write_bytes(b'')


@case(seg, 'an empty mask file', early='is empty (0 bytes)', found='is empty (0 bytes)')
def _(folder, cfg):
    mask(folder).write_bytes(b'')


@case(seg, 'a JPEG that is cut off', found='1.jpg is cut off or damaged')
def _(folder, cfg):
    stored_as(image(folder), Image.fromarray(np.tile(pixels(1)[0], (4, 4, 1))), 'JPEG')
    stored_as(mask(folder), Image.fromarray(np.tile(pixels(1)[1], (4, 4))), 'PNG')
    image(folder).write_bytes(image(folder).read_bytes()[:900])


@case(seg, 'a PNG that is cut off', found='1.png is cut off or damaged')
def _(folder, cfg):
    mask(folder).write_bytes(mask(folder).read_bytes()[:60])


@case(seg, 'a validation image that is cut off', early='0.jpg', found='0.jpg')
def _(folder, cfg):
    image(folder, 0, 'val').write_bytes(image(folder, 0, 'val').read_bytes()[:100])


@case(seg, 'a text file named .jpg', found='1.jpg cannot be read: LoadImageFromFile fails')
def _(folder, cfg):
    image(folder).write_text('no picture')


@case(seg, 'a text file named .png', found='1.png cannot be read: LoadAnnotations fails')
def _(folder, cfg):
    mask(folder).write_text('no picture')


@case(seg, 'a numpy array named .png', found='1.png cannot be read: LoadAnnotations fails')
def _(folder, cfg):
    with mask(folder).open('wb') as stream:
        np.save(stream, pixels(1)[1])


@case(seg, 'a page of the web named .jpg', early='0.jpg', found='0.jpg cannot be read')
def _(folder, cfg):
    image(folder, 0).write_text('<!DOCTYPE html><html>404</html>')


@case(seg, 'a folder named like an image', warned='has no image')
def _(folder, cfg):
    image(folder).unlink()
    image(folder).mkdir()


@case(seg, 'a mask that says it has 40000 x 40000 pixels', found='more pixels than Pillow decodes')
def _(folder, cfg):
    mask(folder).write_bytes(png_header(40_000, 40_000))


@case(seg, 'an image that says it has 40000 x 40000 pixels', found='more pixels than Pillow')
def _(folder, cfg):
    image(folder).write_bytes(png_header(40_000, 40_000))


@case(seg, 'grey masks stored as RGB', early='its channels are equal', found='channels are equal')
def _(folder, cfg):
    every_mask(folder, lambda labels: np.repeat(labels[..., None], 3, axis=2))


@case(seg, 'masks of colours', early='translate its colours', found='translate its colours')
def _(folder, cfg):
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    every_mask(folder, lambda labels: colours[labels])


@case(seg, 'masks with an alpha channel', early='has 2 channels', found='has 2 channels')
def _(folder, cfg):
    every_mask(folder, lambda labels: np.stack([labels, np.full_like(labels, 255)], axis=2))


@case(seg, 'masks of colours with an alpha channel', early='4 channels', found='4 channels')
def _(folder, cfg):
    every_mask(folder, lambda labels: np.stack([labels, labels, labels, labels * 0], axis=2))


@case(seg, 'one mask of many stored as RGB', found='1.png has 3 channels')
def _(folder, cfg):
    Image.open(mask(folder)).convert('RGB').save(mask(folder))


@case(seg, 'masks of a palette whose indices are the ids')
def _(folder, cfg):
    for path in sorted((folder / 'masks').rglob('*.png')):
        picture = Image.open(path)
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        picture.save(path)


@case(seg, 'masks of 16 bits with ids below 256')
def _(folder, cfg):
    every_mask(folder, lambda labels: labels.astype(np.uint16))


@case(seg, 'masks of 16 bits with larger ids', found='holds the value 256')
def _(folder, cfg):
    every_mask(folder, lambda labels: labels.astype(np.uint16) * 256)


@case(seg, 'masks of 1 bit under a head with three classes', found='1 of 3 classes never occur')
def _(folder, cfg):
    every_mask(folder, lambda labels: labels > 0)


@case(seg, 'masks of 1 bit under a head with two classes')
def _(folder, cfg):
    every_mask(folder, lambda labels: labels > 0)
    two_classes(cfg)


@case(
    seg,
    'masks of 0 and 255',
    found='in masks of 0 and 255 the foreground is ignored',
    warned='in masks of 0 and 255 the foreground is ignored',
)
def _(folder, cfg):
    every_mask(folder, lambda labels: (labels > 0).astype(np.uint8) * 255)
    two_classes(cfg)


@case(seg, 'masks of 0 and 128', early='label ids [128]', found='label ids [128]')
def _(folder, cfg):
    every_mask(folder, lambda labels: (labels > 0).astype(np.uint8) * 128)


@case(
    seg,
    'masks of 0 and 1 with reduce_zero_label',
    found='reduce_zero_label=True ignores the label 0',
    warned='reduce_zero_label=True ignores the label 0',
)
def _(folder, cfg):
    every_mask(folder, lambda labels: (labels > 0).astype(np.uint8))
    two_classes(cfg)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.reduce_zero_label = True


@case(seg, 'ids that begin at 1', early='label ids [3]', found='label ids [3]')
def _(folder, cfg):
    every_mask(folder, lambda labels: labels + 1)


@case(seg, 'an id beyond the classes in one mask', found='1.png has the label ids [7]')
def _(folder, cfg):
    labels = pixels(1)[1]
    labels[0, 0] = 7
    Image.fromarray(labels).save(mask(folder))


@case(seg, 'an id beyond the classes in validation', found='[9]', warned='the score leaves it out')
def _(folder, cfg):
    labels = pixels(0)[1]
    labels[0, 0] = 9
    Image.fromarray(labels).save(mask(folder, 0, 'val'))


@case(seg, 'masks of one id', found='is the only one of 3')
def _(folder, cfg):
    every_mask(folder, lambda labels: labels * 0 + 1)


@case(seg, 'masks that are ignored everywhere', found='100.0 % of the labels are ignored')
def _(folder, cfg):
    every_mask(folder, lambda labels: labels * 0 + 255)


@case(seg, 'a class that never occurs', found='1 of 3 classes never occur (2 c)')
def _(folder, cfg):
    every_mask(folder, lambda labels: np.minimum(labels, 1))


@case(
    seg,
    'a head with more classes than the data',
    found='names 3 classes and the head has num_classes=5',
    warned='names 3 classes and the head has num_classes=5',
)
def _(folder, cfg):
    cfg.model.decode_head.num_classes = 5


@case(seg, 'a head with fewer classes than the data', early='label ids [2]', found='[2]')
def _(folder, cfg):
    cfg.model.decode_head.num_classes = 2


@case(seg, 'a palette of another length', early='a palette of 2 colours', found='a palette of 2')
def _(folder, cfg):
    cfg.train_dataloader.dataset.metainfo.palette = [[0] * 3, [9] * 3]


@case(seg, 'a palette left out')
def _(folder, cfg):
    del cfg.train_dataloader.dataset.metainfo['palette']


@case(seg, 'other classes in validation', found='has other classes', warned='has other classes')
def _(folder, cfg):
    cfg.val_dataloader.dataset.metainfo.classes = ('a', 'c', 'b')


@case(seg, 'a mask smaller than its image', found='is 16 x 12 pixels, but its image')
def _(folder, cfg):
    Image.fromarray(pixels(1)[1]).resize((16, 12), Image.Resampling.NEAREST).save(mask(folder))


@case(seg, 'a mask smaller than its image, in validation', early='16 x 12', found='16 x 12')
def _(folder, cfg):
    small = Image.fromarray(pixels(0)[1]).resize((16, 12), Image.Resampling.NEAREST)
    small.save(mask(folder, 0, 'val'))


@case(seg, 'an image that its EXIF orientation turns', found='turned by its EXIF orientation')
def _(folder, cfg):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(1)[0]).save(image(folder), exif=exif)


@case(seg, 'an image that its EXIF orientation turns by half')
def _(folder, cfg):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels(1)[0]).save(image(folder), exif=exif)


@case(seg, 'masks stored as JPEG', early='label ids', found='label ids')
def _(folder, cfg):
    for path in sorted((folder / 'masks').rglob('*.png')):
        noisy = np.asarray(Image.open(path)) * 100
        stored_as(path, Image.fromarray(noisy), 'JPEG', quality=20)


@case(seg, 'an image in CMYK')
def _(folder, cfg):
    stored_as(image(folder), Image.fromarray(pixels(1)[0]).convert('CMYK'), 'JPEG')


@case(seg, 'an image with an alpha channel')
def _(folder, cfg):
    stored_as(image(folder), Image.fromarray(pixels(1)[0]).convert('RGBA'), 'PNG')


@case(seg, 'an image in grey')
def _(folder, cfg):
    stored_as(image(folder), Image.fromarray(pixels(1)[0]).convert('L'), 'JPEG')


@case(seg, 'an image of 16 bits')
def _(folder, cfg):
    stored_as(image(folder), Image.fromarray(pixels(1)[0][..., 0].astype(np.uint16) * 99), 'PNG')


@case(seg, 'an image in WebP under the name .jpg')
def _(folder, cfg):
    stored_as(image(folder), Image.fromarray(pixels(1)[0]), 'WEBP')


@case(seg, 'an image in GIF under the name .jpg')
def _(folder, cfg):
    stored_as(image(folder), Image.fromarray(pixels(1)[0]), 'GIF')


@case(seg, 'a TIFF of several pages under the name .jpg')
def _(folder, cfg):
    pages = [Image.fromarray(pixels(n)[0]) for n in range(3)]
    stored_as(image(folder), pages[0], 'TIFF', save_all=True, append_images=pages[1:])


@case(seg, 'a mask of floats in TIFF', found='keeps 8 bits')
def _(folder, cfg):
    stored_as(mask(folder), Image.fromarray(pixels(1)[1].astype(np.float32) + 0.5), 'TIFF')


@case(seg, 'names with blanks, dots, umlauts and capitals')
def _(folder, cfg):
    for n, name in enumerate(['a b', 'a.b.c', 'Grün', 'UPPER', "o'clock", '照片']):
        image(folder, n).rename(image(folder, n).with_name(f'{name}.jpg'))
        mask(folder, n).rename(mask(folder, n).with_name(f'{name}.png'))


@case(seg, 'a name that is no UTF-8')
def _(folder, cfg):
    for path in (image(folder), mask(folder)):
        os.rename(path, os.fsencode(path.parent) + b'/\xff' + os.fsencode(path.suffix))


@case(seg, 'folders inside the folders')
def _(folder, cfg):
    for path in (image(folder), mask(folder)):
        (path.parent / 'inner').mkdir()
        path.rename(path.parent / 'inner' / path.name)


@case(
    seg, 'masks that do not follow the folders of the images', early='does not exist', found='1.png'
)
def _(folder, cfg):
    (folder / 'images/train/inner').mkdir()
    image(folder).rename(folder / 'images/train/inner/1.jpg')


@case(seg, 'a link that leads back to its own folder', early='leads back', found='leads back')
def _(folder, cfg):
    os.symlink(folder / 'images/train', folder / 'images/train/loop')


@case(seg, 'a folder that is linked beside itself', found='read twice', warned='read twice')
def _(folder, cfg):
    for path in (image(folder), mask(folder)):
        (path.parent / 'inner').mkdir()
        path.rename(path.parent / 'inner' / path.name)
        os.symlink(path.parent / 'inner', path.parent / 'again')


@case(seg, 'a link that leads nowhere', warned='has no image')
def _(folder, cfg):
    image(folder).unlink()
    os.symlink(folder / 'nowhere.jpg', image(folder))


@case(seg, 'images that are links')
def _(folder, cfg):
    image(folder).rename(folder / 'elsewhere.jpg')
    os.symlink(folder / 'elsewhere.jpg', image(folder))


@case(seg, 'hidden files beside the images')
def _(folder, cfg):
    image(folder).with_name('._0.jpg').write_bytes(b'\0\5\x16\7')
    image(folder).with_name('Thumbs.db').write_bytes(b'\0')


@case(seg, 'a list with carriage returns')
def _(folder, cfg):
    listed(folder, cfg, b'0\r\n1\r\n2\r\n')


@case(seg, 'a list with blanks at the ends of its lines')
def _(folder, cfg):
    listed(folder, cfg, b'0  \n1\t\n2\n')


@case(seg, 'a list with a byte order mark', early='byte order mark', found='byte order mark')
def _(folder, cfg):
    listed(folder, cfg, b'\xef\xbb\xbf0\n1\n')


@case(seg, 'a list with an empty line', early='an empty line', found='an empty line')
def _(folder, cfg):
    listed(folder, cfg, b'0\n\n1\n')


@case(seg, 'a list whose names have their suffix', early="img_suffix=''", found="img_suffix=''")
def _(folder, cfg):
    listed(folder, cfg, b'0.jpg\n1.jpg\n')


@case(seg, 'a list in UTF-16', early='cannot be built', found='cannot be built')
def _(folder, cfg):
    listed(folder, cfg, '0\n1\n'.encode('utf-16'))


@case(seg, 'an empty list', early='has no samples', found='has no samples')
def _(folder, cfg):
    listed(folder, cfg, b'')


@case(seg, 'a list of what is not there', early='does not exist', found='does not exist')
def _(folder, cfg):
    listed(folder, cfg, b'0\nnothing\n')


@case(seg, 'a list with a name twice')
def _(folder, cfg):
    listed(folder, cfg, b'0\n0\n1\n')


@case(
    seg,
    'a preprocessor that pads to less than the crop, and images below the crop',
    early='model.data_preprocessor.size=(16, 16) pads',
    found='model.data_preprocessor.size=(16, 16) pads',
)
def _(folder, cfg):
    cfg.train_dataloader.dataset.pipeline[2].crop_size = (64, 64)
    Image.fromarray(pixels(1)[0]).resize((20, 20)).save(image(folder))
    Image.fromarray(pixels(1)[1]).resize((20, 20), Image.Resampling.NEAREST).save(mask(folder))


@case(
    seg,
    'a preprocessor that pads to less than the crop, and images above it',
    found='pads to less',
    warned='pads to less',
)
def _(folder, cfg):
    cfg.train_dataloader.dataset.pipeline[2].crop_size = (20, 20)


@case(seg, 'a preprocessor that pads to much more', found='75 % are empty', warned='75 % are empty')
def _(folder, cfg):
    cfg.model.data_preprocessor.size = (32, 32)


@case(seg, 'a preprocessor without a size', early='has neither', found='has neither')
def _(folder, cfg):
    del cfg.model.data_preprocessor['size']


@case(seg, 'a preprocessor with a divisor')
def _(folder, cfg):
    cfg.model.data_preprocessor.size = None
    cfg.model.data_preprocessor.size_divisor = 8


@case(seg, 'a preprocessor with a size and a divisor', early='size_divisor=8', found='divisor=8')
def _(folder, cfg):
    cfg.model.data_preprocessor.size_divisor = 8


@case(seg, 'sliding without a stride', early="mode='slide' needs stride", found='needs stride')
def _(folder, cfg):
    cfg.model.test_cfg = dict(mode='slide', crop_size=(16, 16))


def two_classes(cfg: Config) -> None:
    cfg.model.decode_head.num_classes = 2
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.metainfo = dict(classes=('a', 'b'))


cls = CLASSIFICATION

case(cls, 'class folders as they should be')(lambda folder, cfg: None)


@case(cls, 'a class folder that is empty', found='1 of 3 classes never occur')
def _(folder, cfg):
    for path in (folder / 'train/class 1').iterdir():
        path.unlink()


@case(cls, 'no class folder', early='ends in', found='ends in')
def _(folder, cfg):
    for path in sorted((folder / 'train').rglob('*.jpg')):
        path.rename(path.with_suffix('.webp'))


@case(cls, 'images beside the class folders')
def _(folder, cfg):
    Image.fromarray(pixels(1)[0]).save(folder / 'train' / 'stray.jpg')


@case(cls, 'a class more than the head has', early='label ids [3]', found='label ids [3]')
def _(folder, cfg):
    (folder / 'train/class 3').mkdir()
    Image.fromarray(pixels(1)[0]).save(folder / 'train/class 3/0.jpg')


@case(cls, 'a class folder that validation lacks', found='other classes', warned='other classes')
def _(folder, cfg):
    (folder / 'val/class 0/0.jpg').unlink()
    (folder / 'val/class 0').rmdir()


@case(cls, 'a head with more classes than folders', found='num_classes=4', warned='num_classes=4')
def _(folder, cfg):
    cfg.model.head.num_classes = 4


@case(
    cls,
    'a broken image in a class',
    early='0.jpg cannot be used, LoadImageFromFile fails',
    found='0.jpg cannot be read: LoadImageFromFile fails',
)
def _(folder, cfg):
    (folder / 'train/class 1/0.jpg').write_bytes(b'\xff\xd8 no picture')


@case(cls, 'an empty image in a class', early='is empty (0 bytes)', found='is empty (0 bytes)')
def _(folder, cfg):
    (folder / 'train/class 1/0.jpg').write_bytes(b'')


@case(cls, 'capital suffixes and capital names')
def _(folder, cfg):
    for path in sorted((folder / 'train').rglob('*.jpg')):
        path.rename(path.with_name(path.stem + '.JPG'))


@case(cls, 'a list for a classifier', found='1 of 3 classes never occur')
def _(folder, cfg):
    listed(folder, cfg, b'class 0/0.jpg 0\nclass 1/0.jpg 1\n')


@case(cls, 'a list without labels', early='cannot be built', found='cannot be built')
def _(folder, cfg):
    listed(folder, cfg, b'class0.jpg\n')


@case(cls, 'a list with a label that is a word', early='cannot be built', found='cannot be built')
def _(folder, cfg):
    listed(folder, cfg, b'class 0/0.jpg cat\n')


@case(cls, 'a list with a label out of range', early='label ids [3]', found='label ids [3]')
def _(folder, cfg):
    listed(folder, cfg, b'class 0/0.jpg 0\nclass 1/0.jpg 3\n')


@case(cls, 'a list that begins with a byte order mark', early='byte order', found='byte order')
def _(folder, cfg):
    listed(folder, cfg, b'\xef\xbb\xbfclass 0/0.jpg 0\nclass 1/0.jpg 1\n')


@case(cls, 'a list of a missing image', early='does not exist', found='does not exist')
def _(folder, cfg):
    listed(folder, cfg, b'class 0/0.jpg 0\nclass 1/7.jpg 1\n')


@case(cls, 'a VTAB list with a label out of range', early='out of range', found='out of range')
def _(folder, cfg):
    vtab(folder, cfg, 'class 0/0.jpg 3\n')


@case(cls, 'a VTAB list with a broken image', early='0.jpg', found='0.jpg cannot be read')
def _(folder, cfg):
    vtab(folder, cfg, 'class 0/0.jpg 0\nclass 1/0.jpg 1\nclass 2/0.jpg 2\n')
    (folder / 'train/class 0/0.jpg').write_bytes(b'nothing')


@case(cls, 'a VTAB head of too few classes', early='label ids [2]', found='label ids [2]')
def _(folder, cfg):
    vtab(folder, cfg, 'class 0/0.jpg 0\nclass 1/0.jpg 1\nclass 2/0.jpg 2\n')
    cfg.model.head.num_classes = 2


@case(cls, 'an FGVC list that is no JSON', early='train.json', found='train.json')
def _(folder, cfg):
    for name in ('train', 'val', 'test'):
        (folder / f'{name}.json').write_text('{')
    cfg.train_dataloader.dataset = dict(
        type='FGVC', data_root=str(folder), split='train', num_classes=3, pipeline=[]
    )


def vtab(folder: Path, cfg: Config, text: str) -> None:
    (folder / 'train' / 'train800.txt').write_text(text)
    cfg.train_dataloader.dataset = dict(
        type='VTAB1k',
        serialize_data=False,
        data_root=str(folder / 'train'),
        split='train800',
        num_classes=3,
        pipeline=cfg.train_dataloader.dataset.pipeline,
    )
