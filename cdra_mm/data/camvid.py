"""CamVid from the layout of the SegNet tutorial to ``img_dir`` and ``ann_dir``.

    CamVid/train.txt                      one "image label" pair of paths a line
    CamVid/train/0001TP_006690.png   ->   img_dir/train/0001TP_006690.jpg
    CamVid/trainannot/...            ->   ann_dir/train/0001TP_006690.png

Class ids stay: 0 .. 10 are the classes, 11 is void.
"""

from __future__ import annotations

from pathlib import Path

from cdra_mm.errors import DataError
from cdra_mm.progress import progress_line

from .optional import optional_module

__all__ = ['VOID', 'convert_camvid']

SPLITS = ('train', 'val', 'test')
VOID = 11
JPEG_QUALITY = 92


def convert_camvid(source: str | Path, out: str | Path) -> int:
    """Re-encode the images as JPEG and the label maps as one-channel PNG.

    Raises:
        DataError: If a file is missing or cannot be decoded, sizes differ, or a label id is above
            11; names the file.
    """
    source, out = Path(source), Path(out)
    pairs = [(split, *pair) for split in SPLITS for pair in _pairs(source, split)]
    show = progress_line('converting', unit='images')
    for done, (split, image, label) in enumerate(pairs):
        show(done, len(pairs))
        _convert(image, label, out / 'img_dir' / split, out / 'ann_dir' / split)
    show(len(pairs), len(pairs))
    return len(pairs)


def _pairs(source: Path, split: str) -> list[tuple[Path, Path]]:
    """Image and label paths of a split, from its list or, without one, from its folders."""
    listing = source / f'{split}.txt'
    if not listing.is_file():
        images = sorted((source / split).glob('*.png'))
        return [(image, source / f'{split}annot' / image.name) for image in images]
    pairs = []
    for number, line in enumerate(listing.read_text(encoding='utf-8').splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2:
            raise DataError(f'{listing}:{number}: expected an image and a label, got {line!r}')
        # The lists name absolute paths of their author's machine: the last two parts count.
        image, label = (source.joinpath(*Path(field).parts[-2:]) for field in fields)
        pairs.append((image, label))
    return pairs


def _convert(image: Path, label: Path, image_folder: Path, label_folder: Path) -> None:
    pillow = optional_module('PIL.Image', 'pillow')
    image_folder.mkdir(parents=True, exist_ok=True)
    label_folder.mkdir(parents=True, exist_ok=True)
    try:
        with pillow.open(image) as picture, pillow.open(label) as ids:
            if picture.size != ids.size:
                raise DataError(f'{image} is {picture.size} pixels, its label map {ids.size}')
            if ids.mode not in ('L', 'P'):
                raise DataError(f'{label} has mode {ids.mode}, expected one channel of class ids')
            if ids.getextrema()[1] > VOID:
                raise DataError(f'{label} has class id {ids.getextrema()[1]}, expected 0 to {VOID}')
            picture.convert('RGB').save(image_folder / f'{image.stem}.jpg', quality=JPEG_QUALITY)
            # 'P' holds the ids as palette indices: take the indices, not their colours.
            plain = pillow.frombytes('L', ids.size, ids.tobytes())
            plain.save(label_folder / f'{image.stem}.png', optimize=True)
    except FileNotFoundError as error:
        raise DataError(f'{error.filename} is not there') from error
    except OSError as error:
        raise DataError(f'cannot convert {image} with {label}: {error}') from error
