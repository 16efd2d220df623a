"""Files that are missing, empty, of other suffixes, or no pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .sets import (
    SEGMENTATION,
    case,
    image,
    mask,
    pixels,
    png_header,
    renamed,
    stored_as,
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
