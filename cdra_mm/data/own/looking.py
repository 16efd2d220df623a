"""Every image and mask opened once: sizes, channels, bits, and the values in the masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...progress import Progress
from ..decoding import decoded, map_on_all_cores, size_fault
from ..layout import Fault
from ..optional import optional_module

__all__ = ['LAYOUTS', 'MOST_VALUES', 'Look', 'Seen', 'Value', 'look_at', 'read_values']

Value = int | tuple[int, int, int]
"""What a mask holds at a pixel: a number, or red, green and blue."""

MOST_VALUES = 256  # in all masks together; with more they are no label maps
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: readers turn such an image by a quarter

# What Pillow calls the layouts of pixels: channels and bits.
LAYOUTS = {
    '1': (1, 1),
    'L': (1, 8),
    'P': (3, 8),
    'LA': (2, 8),
    'PA': (4, 8),
    'RGB': (3, 8),
    'RGBA': (4, 8),
    'I;16': (1, 16),
    'I;16B': (1, 16),
    'I': (1, 32),
}


@dataclass(frozen=True)
class Look:
    """What is seen of a pair.

    Attributes:
        size: Width and height of the image in pixels.
        mode: Pillow's name for the layout of its pixels.
        brightest: The largest value in it, where it has more than 8 bits.
        mask_mode: Likewise of the mask.
        mask_format: Its file format, as Pillow names it.
        palette: Colours of the values, where the mask has a palette.
        values: Pixels of each value.
        faults: What is wrong; then the rest may be missing.
    """

    size: tuple[int, int] | None = None
    mode: str = ''
    brightest: int | None = None
    mask_mode: str = ''
    mask_format: str = ''
    palette: dict[int, tuple[int, ...]] = field(default_factory=dict)
    values: dict[Value, int] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


@dataclass
class Seen:
    """All pairs of a split, added up.

    Attributes:
        sizes: Images of each size.
        modes: Images of each layout.
        brightest: Largest value of images with more than 8 bits.
        mask_modes: Masks of each layout.
        mask_formats: Masks of each file format.
        palette: Colours of values.
        images_with: Masks that hold a value.
        pixels_with: Pixels with it.
        faults: What is wrong with files.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    brightest: int | None = None
    mask_modes: Counter[str] = field(default_factory=Counter)
    mask_formats: Counter[str] = field(default_factory=Counter)
    palette: dict[int, tuple[int, ...]] = field(default_factory=dict)
    images_with: Counter[Value] = field(default_factory=Counter)
    pixels_with: Counter[Value] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)

    def add(self, look: Look) -> None:
        """Adds a pair."""
        self.faults += look.faults
        if look.size is not None:
            self.sizes[look.size] += 1
            self.modes[look.mode] += 1
        if look.brightest is not None:
            self.brightest = max(look.brightest, self.brightest or 0)
        if look.mask_mode:
            self.mask_modes[look.mask_mode] += 1
            self.mask_formats[look.mask_format] += 1
        self.palette = {**look.palette, **self.palette}
        self.images_with.update(look.values.keys())
        self.pixels_with.update(look.values)


def look_at(pairs: Iterable[tuple[Path, Path]], total: int, show: Progress) -> Iterator[Look]:
    """Opens pairs of an image and a mask, on all cores, and looks at them.

    Args:
        pairs: The paths.
        total: How many there are.
        show: Called with (pairs done, total).

    Yields:
        What is seen, in order.
    """
    for done, look in enumerate(map_on_all_cores(_look, pairs)):
        show(done, total)
        yield look
    show(total, total)


def _look(pair: tuple[Path, Path]) -> Look:
    faults: list[Fault] = []
    seen: dict[str, Any] = {}
    image, mask = pair
    with decoded(image, faults) as picture:
        if picture is not None:
            seen |= {'size': _upright_size(picture), 'mode': picture.mode}
            if LAYOUTS.get(picture.mode, (0, 8))[1] > 8:
                seen['brightest'] = int(picture.getextrema()[1])
    with decoded(mask, faults) as picture:
        if picture is not None:
            seen |= {'mask_mode': picture.mode, 'mask_format': picture.format or ''}
            if picture.mode == 'P':
                seen['palette'] = _palette(picture)
            values = read_values(picture)
            if values is None:
                what = f'has more than {MOST_VALUES} values or colours: it is no label map'
                faults.append(Fault(str(mask), what))
            seen['values'] = values or {}
            faults += size_fault(mask, picture.size, image, seen.get('size'))
    return Look(**seen, faults=tuple(faults))


def _upright_size(picture: Any) -> tuple[int, int]:
    """Width and height as readers see it, who follow the camera's note of how it was held."""
    width, height = picture.size
    turned = picture.getexif().get(ORIENTATION) in TURNED
    return (height, width) if turned else (width, height)


def _palette(picture: Any) -> dict[int, tuple[int, ...]]:
    flat = picture.getpalette() or []
    return {i: tuple(flat[3 * i : 3 * i + 3]) for i in range(len(flat) // 3)}


def read_values(picture: Any) -> dict[Value, int] | None:
    """Pixels of each value of a decoded mask, None where they are too many.

    Transparency counts for nothing. Colours whose three parts are equal stay colours: whether
    they mean numbers is for `labels` to say.
    """
    if picture.mode in ('LA', 'PA'):
        picture = picture.getchannel(0)
    elif picture.mode not in ('1', 'L', 'P', 'RGB') and LAYOUTS.get(picture.mode, (3, 8))[0] != 1:
        picture = picture.convert('RGB')
    if LAYOUTS.get(picture.mode, (0, 8))[1] > 8:
        numpy = optional_module('numpy', 'numpy')
        numbers, counts = numpy.unique(numpy.asarray(picture), return_counts=True)
        if len(numbers) > MOST_VALUES:
            return None
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    colours = picture.getcolors(MOST_VALUES)
    if colours is None:
        return None
    scale = 255 if picture.mode == '1' else 1  # bits are read as 0 and 1
    return {v if isinstance(v, tuple) else v // scale: count for count, v in colours}
