"""Which mask belongs to which image, and what the sub-folders split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cdra_mm.errors import DataError

from ..image_files import find_images

__all__ = ['Endings', 'Pair', 'SplitPairs', 'Pairing', 'find_pairs']

# What folders are called, by the split that they hold.
SPLITS = {
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation', 'dev'),
    'test': ('test', 'testing'),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
BOUNDARIES = '_-. '


@dataclass(frozen=True)
class Pair:
    """An image with its mask.

    Attributes:
        name: What both names share: a path below the two folders of the part.
        image_suffix: What follows it in the name of the image, such as ``'.jpg'``.
        mask_suffix: Likewise of the mask: ``'.png'``, ``'_mask.png'``.
    """

    name: str
    image_suffix: str
    mask_suffix: str


@dataclass(frozen=True)
class SplitPairs:
    """The pairs of one split; of all, where no folders split them.

    Attributes:
        split: ``'train'``, ``'val'``, ``'test'``, or ``''``.
        images: Folder of the images.
        masks: Folder of the masks.
        pairs: The pairs, by name.
        lone_images: Images without a mask, relative to the folder.
        lone_masks: Masks without an image, likewise.
    """

    split: str
    images: Path
    masks: Path
    pairs: tuple[Pair, ...]
    lone_images: tuple[Path, ...] = ()
    lone_masks: tuple[Path, ...] = ()

    def image(self, pair: Pair) -> Path:
        """The image of a pair."""
        return self.images / (pair.name + pair.image_suffix)

    def mask(self, pair: Pair) -> Path:
        """The mask of a pair."""
        return self.masks / (pair.name + pair.mask_suffix)


@dataclass(frozen=True)
class Pairing:
    """What two folders hold.

    Attributes:
        images: Folder of the images.
        masks: Folder of the masks.
        parts: The splits that sub-folders make, or one part.
        notes: What was left out and why, one line each.
    """

    images: Path
    masks: Path
    parts: tuple[SplitPairs, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Endings:
    """What the names of images and masks end in beyond what they share, without suffix."""

    image: str = ''
    mask: str = ''


def find_pairs(
    images: Path, masks: Path, *, image_suffix: str = '', mask_suffix: str = ''
) -> Pairing:
    """Pairs images and masks by their names.

    Names are equal but for the suffix, or one ends in something more (``a.jpg``, ``a_mask.png``).
    Sub-folders called train, val or test, in either folder, are splits.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        image_suffix: What the names of images end in, where that is not left to find out.
        mask_suffix: Likewise.

    Raises:
        DataError: If a folder is missing or empty, or nothing fits together.
    """
    if images.resolve() == masks.resolve() and not (image_suffix and mask_suffix):
        raise DataError(
            f'{images} holds images and masks: say how their names end with --image-suffix and '
            '--mask-suffix, for example --image-suffix .jpg --mask-suffix _mask.png'
        )
    found = {
        'image': _files(images, image_suffix, 'images'),
        'mask': _files(masks, mask_suffix, 'masks'),
    }
    if images.resolve() == masks.resolve():
        found['image'] = [name for name in found['image'] if name not in set(found['mask'])]
    splits = {kind: _split_folders(names) for kind, names in found.items()}
    if not any('train' in folders for folders in splits.values()):
        splits = {'image': {}, 'mask': {}}
    notes: list[str] = []
    parts = []
    for split in [name for name in SPLITS if any(name in s for s in splits.values())] or ['']:
        roots, names = {}, {}
        for kind, root in (('image', images), ('mask', masks)):
            folder = splits[kind].get(split, '')
            below = found[kind]
            if splits[kind]:
                below = [n.relative_to(folder) for n in below if folder and n.parts[0] == folder]
            roots[kind], names[kind] = root / folder, below
        if not names['image'] or not names['mask']:
            lacks = 'masks' if names['image'] else 'images'
            notes.append(f'{split}: left out, it has no {lacks}')
            continue
        endings = _endings(names['image'], names['mask'], image_suffix, mask_suffix)
        parts.append(_pair(split, roots, names, endings))
    notes += _outside(found, splits)
    if not any(part.pairs for part in parts):
        raise DataError(
            f'no image of {images} has a mask in {masks} (for example {found["image"][0]} and '
            f'{found["mask"][0]}): both bear the same name, or one ends in something more, as in '
            'a.jpg and a_mask.png'
        )
    return Pairing(images, masks, tuple(part for part in parts if part.pairs), tuple(notes))


def _files(folder: Path, suffix: str, what: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f'{folder} is no folder: expected the folder of the {what}')
    names = [n for n in find_images(folder).names if str(n).endswith(suffix)]
    if not names:
        ending = f' whose names end in {suffix}' if suffix else ''
        raise DataError(f'{folder} holds no images{ending}: expected the folder of the {what}')
    return names


def _split_folders(names: Iterable[Path]) -> dict[str, str]:
    """The folder of each split, by the first part of the paths."""
    firsts = sorted({name.parts[0] for name in names if len(name.parts) > 1})
    return {SPLIT_OF[first.lower()]: first for first in firsts if first.lower() in SPLIT_OF}


def _outside(found: dict[str, list[Path]], splits: dict[str, dict[str, str]]) -> list[str]:
    notes = []
    for kind, names in found.items():
        folders = set(splits[kind].values())
        outside = [name for name in names if folders and name.parts[0] not in folders]
        if outside:
            notes.append(
                f'{len(outside)} {kind}s outside the folders of the splits are left out (first: '
                f'{outside[0]})'
            )
    return notes


def _stem(name: Path) -> str:
    return name.with_suffix('').as_posix()


def _endings(images: list[Path], masks: list[Path], image_suffix: str, mask_suffix: str) -> Endings:
    """What has to be taken off the stems so that they are equal, as often as possible."""
    first, second = {_stem(n) for n in images}, {_stem(n) for n in masks}
    candidates = {Endings()}
    for longer, shorter, make in (
        (second, first, lambda ending: Endings(mask=ending)),
        (first, second, lambda ending: Endings(image=ending)),
    ):
        counts: Counter[str] = Counter()
        for name in longer:
            cut = next((i for i in range(len(name) - 1, 0, -1) if name[:i] in shorter), None)
            counts.update([name[cut:]] if cut else [])
        candidates |= {make(ending) for ending, _ in counts.most_common(1)}
    candidates.add(Endings(_common_ending(first), _common_ending(second)))
    given = [_stem(Path('x' + suffix))[1:] for suffix in (image_suffix, mask_suffix)]
    candidates = {
        Endings(given[0] if image_suffix else c.image, given[1] if mask_suffix else c.mask)
        for c in candidates
    }

    def fitting(endings: Endings) -> tuple[int, int]:
        count = len(_without(first, endings.image) & _without(second, endings.mask))
        return count, -len(endings.image + endings.mask)

    return max(candidates, key=fitting)


def _common_ending(names: Iterable[str]) -> str:
    """What all names end in, from a boundary on: ``'_leftImg8bit'``."""
    first, *others = names
    ending = first
    for name in others:
        while not name.endswith(ending):
            ending = ending[1:]
    starts = [i for i, letter in enumerate(ending) if letter in BOUNDARIES]
    return ending[starts[0] :] if starts and len(first) > len(ending) else ''


def _without(names: Iterable[str], ending: str) -> set[str]:
    return {name.removesuffix(ending) for name in names if name.endswith(ending)}


def _pair(
    split: str, roots: dict[str, Path], names: dict[str, list[Path]], endings: Endings
) -> SplitPairs:
    shared: dict[str, dict[str, Path]] = {'image': {}, 'mask': {}}
    lone: dict[str, list[Path]] = {'image': [], 'mask': []}
    for kind, ending in (('image', endings.image), ('mask', endings.mask)):
        for name in names[kind]:
            stem = _stem(name)
            if not stem.endswith(ending):
                lone[kind].append(name)
                continue
            other = shared[kind].setdefault(stem.removesuffix(ending), name)
            if other != name:
                raise DataError(
                    f'{roots[kind] / other.name} and {name.name} have one name: say which to take '
                    f'with --{kind}-suffix {name.suffix}'
                )
    both = sorted(shared['image'].keys() & shared['mask'].keys())
    for kind, entries in shared.items():
        lone[kind] += [name for key, name in entries.items() if key not in set(both)]
    pairs = (
        Pair(key, *(entries[key].as_posix().removeprefix(key) for entries in shared.values()))
        for key in both
    )
    return SplitPairs(
        split,
        roots['image'],
        roots['mask'],
        tuple(pairs),
        tuple(sorted(lone['image'])),
        tuple(sorted(lone['mask'])),
    )
