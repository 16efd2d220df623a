"""What a picture file says of itself, beyond what the loading steps of a pipeline show.

OpenCV fills what a cut-off JPEG lacks with grey, keeps 8 of 16 bits, reads the first of several
pages, and says nothing; mmseg keeps the lowest 8 bits of a label.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ['ImageHeader', 'image_header']

ORIENTATION = 0x0112  # the tag of EXIF
ENDS = {'JPEG': b'\xff\xd9', 'PNG': b'IEND\xaeB`\x82'}
WIDE = ('I', 'I;16', 'I;16B', 'I;16L', 'F')
MOST_PIXELS = 2 * 89_478_485  # beyond it Pillow refuses to decode


class ImageHeader:
    """What was found of a file.

    Attributes:
        fault: Why it cannot be used; '' for a good file.
        remark: What is unusual about it; '' for nothing.
        is_rotated: Whether its EXIF orientation asks for the picture to be turned or mirrored.
    """

    def __init__(self, fault: str = '', remark: str = '', is_rotated: bool = False) -> None:
        self.fault, self.remark, self.is_rotated = fault, remark, is_rotated


def image_header(path: str, *, is_mask: bool = False) -> ImageHeader:
    """Looks at a picture file; its pixels are read only where its kind makes that necessary.

    Args:
        path: The file. What Pillow does not know (npy, raw data) is left to the pipeline.
        is_mask: Whether it is a map of class ids, which are to be kept exactly.
    """
    if not os.path.isfile(path):
        return ImageHeader('is a folder' if os.path.isdir(path) else 'does not exist')
    if os.path.getsize(path) == 0:
        return ImageHeader('is empty (0 bytes)')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's remarks on odd metadata and large pictures
        try:
            with Image.open(path) as picture:
                return _look(picture, path, is_mask)
        except Image.DecompressionBombError:
            return ImageHeader(
                'says it has more pixels than Pillow decodes: it is damaged, or too large'
            )
        except Exception:  # the loading steps say what they make of it
            return ImageHeader()


def _look(picture: Image.Image, path: str, is_mask: bool) -> ImageHeader:
    kind, mode = picture.format or '', picture.mode
    width, height = picture.size
    if width * height > MOST_PIXELS:
        return ImageHeader(f'says it is {width} x {height} pixels: it is damaged, or too large')
    if kind in ENDS and not _ends_with(path, ENDS[kind]):
        try:
            picture.load()
        except OSError as error:
            return ImageHeader(f'is cut off or damaged ({error})')
    remarks = []
    if getattr(picture, 'n_frames', 1) > 1:
        remarks.append('holds several pictures, of which only the first is read')
    if is_mask and kind in ('JPEG', 'WEBP'):
        remarks.append(f'is a {kind} file, which blurs class ids unless it is lossless: store PNG')
    if is_mask and mode in WIDE:
        values = np.asarray(picture)
        kept = values.astype(np.int64).astype(np.uint8)
        if not (kept == values).all():
            wrong = values[kept != values].ravel()[0]
            return ImageHeader(
                f'holds the value {wrong} (mode {mode}), and a label keeps 8 bits: store ids of '
                '0 to 255 in 8 bits'
            )
    elif not is_mask and mode in WIDE:
        remarks.append(f'has mode {mode}, more than the 8 bits that OpenCV keeps')
    if not is_mask and mode in ('LA', 'RGBA', 'PA'):
        remarks.append('has an alpha channel, which is dropped')
    is_rotated = picture.getexif().get(ORIENTATION, 1) not in (0, 1)
    return ImageHeader(remark='; '.join(remarks), is_rotated=is_rotated)


def _ends_with(path: str, end: bytes) -> bool:
    with Path(path).open('rb') as stream:
        stream.seek(max(0, os.path.getsize(path) - len(end)))
        return stream.read() == end
