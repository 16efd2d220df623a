"""Pictures decoded on all cores, with a fault in the place of what cannot be."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from .layout import Fault
from .optional import optional_module

__all__ = ['decoded', 'map_on_all_cores', 'size_fault']

WINDOW = 512  # items that are under way at once

Item = TypeVar('Item')
Found = TypeVar('Found')


def map_on_all_cores(look: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """What `look` finds of each item, in order; it may open pictures.

    Raises:
        DataError: If Pillow is missing.
    """
    optional_module('PIL.Image', 'pillow')
    remaining = iter(items)
    # Threads are enough: Pillow's decoders let others run while they work.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter('ignore')  # remarks on odd metadata; what is no picture is an error
        while window := list(islice(remaining, WINDOW)):
            yield from pool.map(look, window)


@contextmanager
def decoded(path: Path, faults: list[Fault]) -> Iterator[Any]:
    """A picture of Pillow, all of it read; None where that fails, which is noted."""
    pillow = optional_module('PIL.Image', 'pillow')
    picture = None
    try:
        picture = pillow.open(path)
        picture.load()
    except Exception as error:  # its decoders raise anything on a damaged file
        text = ' '.join(str(error).split()).replace(f' {str(path)!r}', '')
        faults.append(Fault(str(path), f'cannot be decoded ({text or type(error).__name__})'))
        picture = None
    try:
        yield picture
    finally:
        if picture is not None:
            picture.close()


def size_fault(
    mask: Path, size: tuple[int, int], image: Path, image_size: tuple[int, int] | None
) -> list[Fault]:
    """That a label map is not of the size of its image, both (width, height); [] where it is."""
    if image_size is None or size == image_size:
        return []
    what = f'is {size[0]} x {size[1]} pixels, but its image {image.name} is '
    return [Fault(str(mask), f'{what}{image_size[0]} x {image_size[1]}')]
