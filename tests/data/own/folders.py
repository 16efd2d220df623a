"""A user's images and masks at tiny size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)  # height and width


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path)
    return path


def labels(index: int, values: Iterable[int] = (0, 1, 2)) -> np.ndarray:
    """A map that holds every value."""
    values = list(values)
    rows = np.arange(SIZE[0])[:, None] * len(values) // SIZE[0]
    which = np.broadcast_to((rows + index) % len(values), SIZE)
    return np.array(values)[which]


def write_pair(
    root: Path,
    name: str,
    index: int = 0,
    *,
    values: Iterable[int] = (0, 1, 2),
    image: str = '.jpg',
    mask: str = '.png',
    images: str = 'images',
    masks: str = 'masks',
) -> None:
    """An image, and a mask of 8 bits, below the two folders."""
    rng = np.random.default_rng(index)
    found = labels(index, values)
    pixels = (found[..., None] * 80 + rng.integers(0, 60, (*SIZE, 3))).clip(0, 255)
    save(root / images / (name + image), pixels.astype(np.uint8))
    save(root / masks / (name + mask), found.astype(np.uint8))
