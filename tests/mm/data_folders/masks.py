"""Label maps of other modes, values and sizes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .sets import (
    SEGMENTATION,
    case,
    every_mask,
    image,
    mask,
    pixels,
    stored_as,
    two_classes,
)

seg = SEGMENTATION


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
