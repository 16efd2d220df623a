"""Images of other kinds, names and links."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from .sets import (
    SEGMENTATION,
    case,
    image,
    mask,
    pixels,
    stored_as,
)

seg = SEGMENTATION


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
