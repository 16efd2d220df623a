"""Class folders and lists of classifiers."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from PIL import Image

from .sets import (
    CLASSIFICATION,
    case,
    listed,
    pixels,
)

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
