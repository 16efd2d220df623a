"""The images below a folder, and names for what is made of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdra_mm.errors import DataError

__all__ = ['IMAGE_SUFFIXES', 'ImageFiles', 'find_images', 'unique_names']

# What OpenMMLab's readers take, in any case.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')


@dataclass(frozen=True)
class ImageFiles:
    """Images below a folder.

    Attributes:
        root: The folder.
        names: Their paths relative to it, sorted.
        others: Paths of the files that are no images by their suffix, likewise.
    """

    root: Path
    names: tuple[Path, ...]
    others: tuple[Path, ...] = ()


def find_images(path: Path, *, without: Path | None = None) -> ImageFiles:
    """Looks for images in a folder and all below it; hidden files and folders are left out.

    Args:
        path: A folder, or a single image.
        without: A folder that is not looked into.

    Raises:
        DataError: If nothing is there.
    """
    if path.is_file():
        return ImageFiles(path.parent, (Path(path.name),))
    if not path.is_dir():
        raise DataError(f'{path} does not exist: expected an image or a folder of images')
    left_out = None if without is None else without.resolve()
    names: list[Path] = []
    others: list[Path] = []
    for folder, folders, files in os.walk(path, followlinks=True):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith('.')
            and (left_out is None or (here / name).resolve() != left_out)
        )
        for name in files:
            if not name.startswith('.'):
                found = names if Path(name).suffix.lower() in IMAGE_SUFFIXES else others
                found.append((here / name).relative_to(path))
    return ImageFiles(path, tuple(sorted(names)), tuple(sorted(others)))


def unique_names(names: Sequence[Path], suffix: str) -> dict[Path, Path]:
    """A name for what is made of each image: its own with another suffix.

    Where two would have the same name (``a.jpg`` and ``a.png``), their own suffixes stay within.

    Args:
        names: Paths of images, relative to their folder.
        suffix: The new suffix.

    Returns:
        Their new names, in the same folders.

    Example:
        >>> made = unique_names([Path('a.jpg'), Path('a.png'), Path('b.jpg')], '.png')
        >>> [str(name) for name in made.values()]
        ['a.jpg.png', 'a.png.png', 'b.png']
    """
    made = {name: name.with_suffix(suffix) for name in names}
    while True:
        # File systems that take A.png for a.png are common.
        counts = Counter(str(new).lower() for new in made.values())
        full = {name: name.with_name(name.name + suffix) for name in names}
        clashing = [n for n, new in made.items() if counts[str(new).lower()] > 1 and new != full[n]]
        if not clashing:
            return made
        made |= {name: full[name] for name in clashing}
