"""Lists of names, and settings of sizes."""

from __future__ import annotations

from PIL import Image

from .sets import (
    SEGMENTATION,
    case,
    image,
    listed,
    mask,
    pixels,
)

seg = SEGMENTATION


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
