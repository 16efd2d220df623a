"""A small segmentation data set made of real pixels that scikit-learn ships.

Handwritten digits, scaled, turned, painted and overlapping, lie on crops of two photographs.
Class 0 is the photograph, class 1 + d the digit d; a mask holds what is visible of a digit. A
digit's ink leans to a hue of its own, but neighbours overlap: colour alone does not tell them.
Training and validation share neither a handwritten sample nor a pixel of a photograph.

    root/images/{training,validation}/0000.jpg        RGB
    root/annotations/{training,validation}/0000.png   class ids 0 .. 10
    root/demo.json                                    settings, and what each image was made of

Sources: the digits are the UCI set "Optical Recognition of Handwritten Digits"; the photographs
``china.jpg`` (danielbuechele) and ``flower.jpg`` (vultilion) are licensed CC BY 2.0.
"""

from __future__ import annotations

import colorsys
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdra_mm.errors import DataError
from cdra_mm.progress import progress_line

from .optional import optional_module
from .staging import staged

__all__ = ['CLASSES', 'PALETTE', 'make_demo']

CLASSES = ('photo', *(str(digit) for digit in range(10)))
PALETTE = (
    (40, 40, 40),
    *(
        tuple(round(255 * c) for c in colorsys.hsv_to_rgb(d / 10, 0.75, (0.95, 0.7)[d % 2]))
        for d in range(10)
    ),
)

VERSION = 1
VALIDATION_SHARE = 0.3  # of the samples of each digit, and about of each photograph
CROP = (80, 200)  # side of the background's square, in pixels of the photograph
HEIGHTS = (14 / 64, 28 / 64)  # of a digit, as a share of the image's height
DIGITS = (2, 5)  # in an image
MAX_TURN = 20.0  # degrees; more would make a 6 of a 9
MIN_VISIBLE = 0.7  # of a digit's pixels after others were laid over it
INKS = ((0.45, 1), (0.35, 1))  # saturation and value of a digit's ink
HUE_SPREAD = 0.04  # standard deviation around the hue of the digit's class; classes are 0.1 apart
MIDDLE_GREY, DARK, BRIGHT = 115, 70, 180  # luminance, of 255
OUTLINE = 1 / 64  # width, as a share of the image's height
SUPERSAMPLING = 8  # a sample's 8 x 8 pixels are drawn at 8 times their size
INK = 112  # grey level from which a pixel of a sample (0 .. 255) belongs to its stroke
TRIES = 40  # to find a place for a digit


@dataclass(frozen=True)
class _Pool:
    """What one split may use: sample numbers by digit, and a box of each photograph."""

    samples: dict[int, list[int]]
    boxes: dict[str, tuple[int, int, int, int]]  # left, top, right, bottom


def make_demo(
    root: str | Path,
    *,
    seed: int = 0,
    num_training: int = 240,
    num_validation: int = 80,
    size: int = 64,
) -> Path:
    """Generate the demo data set; the same arguments give the same data.

    Args:
        root: Folder to make it in.
        seed: Seed of everything random.
        num_training: Number of training images.
        num_validation: Number of validation images.
        size: Height and width of an image in pixels.

    Raises:
        DataError: If a number is out of range, part of a data set is there already, the folder
            cannot be written, or scikit-learn is missing.
    """
    root = Path(root)
    counts = {'training': num_training, 'validation': num_validation}
    if min(counts.values()) < 1 or size < 32 or seed < 0:
        raise DataError(
            'demo data need at least 1 image a split, 32 pixels and a seed of 0 or more, got '
            f'{num_training} and {num_validation} images, {size} pixels, seed {seed}'
        )
    numpy = optional_module('numpy', 'numpy')
    digits, photos = _load()
    pools = _split(digits, photos, numpy.random.default_rng([seed, 0]))
    record: dict[str, Any] = {
        'version': VERSION,
        'seed': seed,
        'size': size,
        'counts': counts,
        'classes': CLASSES,
        'images': {},
    }
    show = progress_line('drawing', unit='images')
    with staged(root, ('images', 'annotations', 'demo.json')) as folder:
        for stream, (split, count) in enumerate(counts.items(), 1):
            # Its own random numbers: the validation images do not depend on how many train.
            rng = numpy.random.default_rng([seed, stream])
            painter = _Painter(digits, photos, pools[split], size, rng)
            for kind in ('images', 'annotations'):
                (folder / kind / split).mkdir(parents=True)
            for number in range(count):
                image, mask, made_of = painter.paint()
                name = f'{number:04d}'
                image.save(folder / f'images/{split}/{name}.jpg', quality=95, subsampling=0)
                mask.save(folder / f'annotations/{split}/{name}.png', optimize=True)
                record['images'][f'{split}/{name}'] = made_of
                show(len(record['images']), num_training + num_validation)
        (folder / 'demo.json').write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
    return root


def _load() -> tuple[Any, dict[str, Any]]:
    """The digits (``images`` [1797, 8, 8] of 0 .. 16, ``target``) and the two photographs."""
    datasets = optional_module('sklearn.datasets', 'scikit-learn')
    pillow = optional_module('PIL.Image', 'pillow')
    samples = datasets.load_sample_images()
    names = [Path(name).name for name in samples.filenames]
    return datasets.load_digits(), {
        name: pillow.fromarray(pixels) for name, pixels in zip(names, samples.images, strict=True)
    }


def _split(digits: Any, photos: dict[str, Any], rng: Any) -> dict[str, _Pool]:
    """Disjoint pools: samples at random, photographs cut by a horizontal line."""
    train: dict[int, list[int]] = {}
    val: dict[int, list[int]] = {}
    for digit in range(10):
        numbers = [int(n) for n in rng.permutation((digits.target == digit).nonzero()[0])]
        cut = round(len(numbers) * VALIDATION_SHARE)
        val[digit], train[digit] = numbers[:cut], numbers[cut:]
    cuts = {name: round(photo.height * (1 - VALIDATION_SHARE)) for name, photo in photos.items()}
    above = {name: (0, 0, photo.width, cuts[name]) for name, photo in photos.items()}
    below = {name: (0, cuts[name], photo.width, photo.height) for name, photo in photos.items()}
    return {'training': _Pool(train, above), 'validation': _Pool(val, below)}


class _Painter:
    """Paints images of one split, with classes and samples used evenly."""

    def __init__(
        self, digits: Any, photos: dict[str, Any], pool: _Pool, size: int, rng: Any
    ) -> None:
        self.digits = digits
        self.photos = photos
        self.pool = pool
        self.size = size
        self.rng = rng
        self.bag: list[int] = []
        self.used = dict.fromkeys(range(10), 0)

    def paint(self) -> tuple[Any, Any, dict[str, Any]]:
        """One image, its mask, and what it was made of."""
        numpy = optional_module('numpy', 'numpy')
        pillow = optional_module('PIL.Image', 'pillow')
        background, made_of = self._background()
        pixels = numpy.asarray(background, dtype=numpy.float32).copy()
        # 1 + index of the digit on top, 0 for the photograph.
        owner = numpy.zeros((self.size, self.size), dtype=numpy.int64)
        areas: list[int] = []
        classes = [0]
        made_of['digits'] = []
        wanted = int(self.rng.integers(DIGITS[0], DIGITS[1] + 1))
        for attempt in range(wanted * TRIES):
            if len(areas) == wanted or (len(areas) >= DIGITS[0] and attempt >= wanted * TRIES // 2):
                break
            sample, digit = self._next_sample()
            ink, rim = self._draw(sample)
            place = self._find_place(rim >= 0.5, owner, areas)
            if place is None:
                self.bag.append(digit)
                continue
            (y, x), (height, width) = place, rim.shape
            window = (slice(y, y + height), slice(x, x + width))
            self._lay(pixels[window], ink, rim, digit)
            areas.append(int((rim >= 0.5).sum()))
            owner[window][rim >= 0.5] = len(areas)
            classes.append(1 + digit)
            made_of['digits'].append({'sample': sample, 'class': 1 + digit, 'top_left': place})
        image = pillow.fromarray(pixels.round().clip(0, 255).astype(numpy.uint8))
        mask = pillow.fromarray(numpy.asarray(classes, dtype=numpy.uint8)[owner])
        return image, mask, made_of

    def _background(self) -> tuple[Any, dict[str, Any]]:
        pillow = optional_module('PIL.Image', 'pillow')
        names = sorted(self.pool.boxes)
        name = names[int(self.rng.integers(len(names)))]
        left, top, right, bottom = self.pool.boxes[name]
        side = int(self.rng.integers(CROP[0], min(CROP[1], right - left, bottom - top) + 1))
        x = int(self.rng.integers(left, right - side + 1))
        y = int(self.rng.integers(top, bottom - side + 1))
        crop = self.photos[name].crop((x, y, x + side, y + side))
        crop = crop.resize((self.size, self.size), pillow.Resampling.LANCZOS)
        if self.rng.random() < 0.5:
            crop = crop.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
        return crop, {'photo': name, 'box': [x, y, x + side, y + side]}

    def _next_sample(self) -> tuple[int, int]:
        """Digits from a shuffled bag, so that each is as frequent as any other."""
        if not self.bag:
            self.bag = [int(d) for d in self.rng.permutation(10)]
        digit = self.bag.pop()
        numbers = self.pool.samples[digit]
        sample = numbers[self.used[digit] % len(numbers)]
        self.used[digit] += 1
        return sample, digit

    def _draw(self, sample: int) -> tuple[Any, Any]:
        """Coverage in [0, 1] of a digit's ink, and of its ink with the outline around it."""
        numpy = optional_module('numpy', 'numpy')
        pillow = optional_module('PIL.Image', 'pillow')
        filters = optional_module('PIL.ImageFilter', 'pillow')
        small = numpy.pad(self.digits.images[sample], 3) * (255 / 16)
        large = pillow.fromarray(small.clip(0, 255).astype(numpy.uint8)).resize(
            (small.shape[1] * SUPERSAMPLING, small.shape[0] * SUPERSAMPLING),
            pillow.Resampling.BICUBIC,
        )
        large = large.filter(filters.GaussianBlur(SUPERSAMPLING / 4))
        turn = float(self.rng.uniform(-MAX_TURN, MAX_TURN))
        large = large.rotate(turn, pillow.Resampling.BICUBIC).point(lambda v: 255 * (v >= INK))
        height = float(self.rng.uniform(*HEIGHTS)) * self.size
        left, top, right, bottom = large.getbbox()
        rim = max(1, round(OUTLINE * self.size * (bottom - top) / height))
        box = (left - rim, top - rim, right + rim, bottom + rim)
        # A blurred edge falls to 8 % at 1.4 standard deviations: a round dilation by ``rim``.
        outlined = large.filter(filters.GaussianBlur(rim / 1.4)).point(lambda v: 255 * (v >= 20))
        scale = height / (bottom - top + 2 * rim)
        shape = (max(2, round((right - left + 2 * rim) * scale)), round(height))
        ink, whole = (
            numpy.asarray(layer.crop(box).resize(shape, pillow.Resampling.BOX), dtype=numpy.float32)
            / 255
            for layer in (large, outlined)
        )
        return ink, whole

    def _find_place(self, shape: Any, owner: Any, areas: list[int]) -> tuple[int, int] | None:
        """A top left corner at which every digit below stays visible enough."""
        height, width = shape.shape
        for _ in range(TRIES):
            y = int(self.rng.integers(0, self.size - height + 1))
            x = int(self.rng.integers(0, self.size - width + 1))
            covered = owner.copy()
            covered[y : y + height, x : x + width][shape] = 0
            visible = [(covered == i + 1).sum() / area for i, area in enumerate(areas)]
            if all(share >= MIN_VISIBLE for share in visible):
                return y, x
        return None

    def _lay(self, pixels: Any, ink: Any, rim: Any, digit: int) -> None:
        """Paint a digit over the window ``pixels``: its outline in a contrasting shade."""
        numpy = optional_module('numpy', 'numpy')
        grey = numpy.asarray((0.299, 0.587, 0.114), numpy.float32)
        behind = float((pixels @ grey)[rim > 0].mean())
        while True:
            hue = float(self.rng.normal(digit / 10, HUE_SPREAD)) % 1
            saturation, value = (float(self.rng.uniform(*limits)) for limits in INKS)
            fill = 255 * numpy.asarray(colorsys.hsv_to_rgb(hue, saturation, value), numpy.float32)
            light_edge = float(fill @ grey) < MIDDLE_GREY
            # A white edge is lost on a bright sky, a black one on dark leaves: mask and image would
            # disagree about where the digit ends.
            if not (behind > BRIGHT if light_edge else behind < DARK):
                break
        edge = numpy.full(3, 235 if light_edge else 25, numpy.float32)
        # The photograph's own shading shows through the paint.
        shading = 0.85 + 0.3 * pixels.mean(axis=2, keepdims=True) / 255
        ink, rim = ink[..., None], rim[..., None]
        painted = ink * fill * shading + (1 - ink) * edge
        pixels[:] = rim * painted + (1 - rim) * pixels
