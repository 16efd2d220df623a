"""Masks of class ids, written into a new folder; the user's own are only read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdra_mm.errors import DataError
from cdra_mm.storage.writing import write_folder

from ..optional import optional_module
from .labels import VOID
from .looking import Value
from .pairing import Pairing, SplitPairs

__all__ = ['check_new_folder', 'convert_masks']

SUFFIX = '.png'


def check_new_folder(folder: Path, pairing: Pairing) -> None:
    """Refuses a folder for new masks that holds something or lies among the user's files.

    Raises:
        DataError: If it does.
    """
    for own in (pairing.images, pairing.masks):
        if folder.resolve() == own.resolve() or own.resolve() in folder.resolve().parents:
            raise DataError(f'--convert-masks {folder} lies in {own}: name a new folder beside it')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f'--convert-masks {folder} exists: name a new folder; nothing is replaced')


def convert_masks(
    pairing: Pairing, folder: Path, ids: Mapping[Value, int], ignored: tuple[Value, ...]
) -> Pairing:
    """Writes the masks of all pairs as grey PNG files of class ids, 255 for what is ignored.

    Args:
        pairing: The pairs.
        folder: A folder that is new or empty; it is there whole or not at all.
        ids: Class id of each value.
        ignored: Values that are ignored.

    Raises:
        CheckpointError: If the disk does not take it.
    """
    table = dict(ids) | dict.fromkeys(ignored, VOID)

    def write(temporary: Path) -> None:
        jobs = list(_jobs(pairing, temporary))
        for target in {target.parent for _, target in jobs}:
            target.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda job: _convert(job[0], job[1], table), jobs):
                pass

    write_folder(folder, write)
    return replace(
        pairing, masks=folder, parts=tuple(_moved(part, pairing, folder) for part in pairing.parts)
    )


def _moved(part: SplitPairs, pairing: Pairing, folder: Path) -> SplitPairs:
    """A part whose masks lie in another folder, as PNG."""
    pairs = tuple(
        replace(pair, mask_suffix=str(Path('x' + pair.mask_suffix).with_suffix(SUFFIX))[1:])
        for pair in part.pairs
    )
    masks = folder / part.masks.relative_to(pairing.masks)
    return replace(part, masks=masks, pairs=pairs, lone_masks=())


def _jobs(pairing: Pairing, folder: Path) -> Iterator[tuple[Path, Path]]:
    for part in pairing.parts:
        new = _moved(part, pairing, folder)
        for old_pair, new_pair in zip(part.pairs, new.pairs, strict=True):
            yield part.mask(old_pair), new.mask(new_pair)


def _convert(source: Path, target: Path, table: Mapping[Value, int]) -> None:
    numpy: Any = optional_module('numpy', 'numpy')
    pillow = optional_module('PIL.Image', 'pillow')
    with pillow.open(source) as picture:
        picture.load()
        if picture.mode in ('LA', 'PA'):
            picture = picture.getchannel(0)
        elif picture.mode not in ('1', 'L', 'P', 'I', 'I;16', 'I;16B', 'RGB'):
            picture = picture.convert('RGB')
        pixels = numpy.asarray(picture).astype(numpy.int64)
    if pixels.ndim == 3:
        pixels = pixels @ numpy.array([1 << 16, 1 << 8, 1])
        keys = {_packed(value): number for value, number in table.items()}
    else:
        keys = {value: number for value, number in table.items() if isinstance(value, int)}
    found, places = numpy.unique(pixels, return_inverse=True)
    foreign = [number for number in found.tolist() if number not in keys]
    if foreign:
        raise DataError(f'{source} has changed since it was looked at: it holds {foreign[0]}')
    ids = numpy.array([keys[number] for number in found.tolist()], numpy.uint8)
    pillow.fromarray(ids[places].reshape(pixels.shape)).save(target)


def _packed(value: Value) -> int:
    """A colour as one number; a number is the grey of that brightness."""
    red, green, blue = (value, value, value) if isinstance(value, int) else value
    return red << 16 | green << 8 | blue
