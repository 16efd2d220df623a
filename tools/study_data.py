#!/usr/bin/env python
"""Lay out the data sets of configs/tables/unseen_cpu.py: five that chose no default here.

    git clone https://github.com/ardamavi/Sign-Language-Digits-Dataset CLONES/signs
    git clone https://github.com/alexeygrigorev/clothing-dataset-small CLONES/clothing
    git clone https://github.com/lusiwei0513/semantic-segmentation-dataset CLONES/rail
    git clone https://github.com/cuilimeng/CrackForest-dataset CLONES/cracks
    python tools/study_data.py CLONES OUT

Used as of their commits 4b09433, 1196151, 2e65206 and ed57c2d. The first two become lists of 800
images to train on, 200 to choose by and the rest to test on (VTAB's layout); the others folders of
images and masks (mmsegmentation's). What each repository splits stays split; what it does not is
shuffled with seed 0. Needs pillow and scipy.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdra_mm.command_line import run

if TYPE_CHECKING:
    from PIL import Image

Labelled = list[tuple[Path, int]]
RAIL_SIDE = 640  # pixels of the longer side that are kept; the masks are 1,080 high and more
TILE = 160  # side of a crack tile: six make a photograph of 480 x 320
CRACKS = {'train': 70, 'val': 18, 'test': 30}  # photographs


def shuffled(items: Iterable[Path]) -> list[Path]:
    """The same order on every machine."""
    found = sorted(items)
    random.Random(0).shuffle(found)
    return found


def labelled(folder: Path) -> Labelled:
    """Images of a folder that has one for each class, shuffled."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    files = shuffled(file for name in classes for file in (folder / name).iterdir())
    return [(file, classes.index(file.parent.name)) for file in files]


def write_lists(out: Path, splits: Mapping[str, Labelled]) -> None:
    """Images as files of their own, and a list for each split."""
    for split, images in splits.items():
        (out / 'images' / split).mkdir(parents=True)
        lines = []
        for index, (file, label) in enumerate(images):
            name = f'images/{split}/{index:06d}{file.suffix.lower()}'
            (out / name).write_bytes(file.read_bytes())
            lines.append(f'{name} {label}\n')
        (out / f'{split}.txt').write_text(''.join(lines))


def signs(clone: Path, out: Path) -> None:
    """Ten hand signs; the repository has no splits."""
    images = labelled(clone / 'Dataset')
    write_lists(out, {'train800': images[:800], 'val200': images[800:1000], 'test': images[1000:]})


def clothing(clone: Path, out: Path) -> None:
    """Ten garments, in splits of the repository."""
    train, val, test = (labelled(clone / name) for name in ('train', 'validation', 'test'))
    write_lists(out, {'train800': train[:800], 'val200': val[:200], 'test': test})


def write_pair(out: Path, split: str, name: str, image: Image.Image, mask: Image.Image) -> None:
    """One image and its mask."""
    for folder, suffix, picture in (('img_dir', 'jpg', image), ('ann_dir', 'png', mask)):
        path = out / folder / split / f'{name}.{suffix}'
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def rail(view: str, clone: Path, out: Path) -> None:
    """Rail vehicles from the front or the side, split by vehicle (the repository's first fold)."""
    from PIL import Image

    folder = clone / '01_data/data_unet' / view
    splits = json.loads((clone / f'01_data/data/{view}/splits/fold_0.json').read_text())
    for split in ('train', 'val', 'test'):
        for name in splits[split]:
            image = Image.open(next((folder / 'images').glob(f'{name}.*'))).convert('RGB')
            mask = Image.open(folder / 'masks' / f'{name}.png')
            image.thumbnail((RAIL_SIDE, RAIL_SIDE))
            write_pair(out, split, name, image, mask.resize(image.size, Image.Resampling.NEAREST))


def tiles(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole tiles: left, top, right, bottom."""
    for top in range(0, size[1] - TILE + 1, TILE):
        for left in range(0, size[0] - TILE + 1, TILE):
            yield left, top, left + TILE, top + TILE


def cracks(clone: Path, out: Path) -> None:
    """Cracks of a road, in tiles; the repository has no splits, whole photographs are split."""
    import numpy as np
    from PIL import Image
    from scipy.io import loadmat

    files = iter(shuffled((clone / 'groundTruth').glob('*.mat')))
    for split, count in CRACKS.items():
        for _ in range(count):
            file = next(files)
            found = loadmat(file)['groundTruth']['Segmentation'][0, 0]
            mask = Image.fromarray((found > 1).astype(np.uint8))
            image = Image.open(clone / 'image' / f'{file.stem}.jpg').convert('RGB')
            for index, box in enumerate(tiles(image.size)):
                write_pair(out, split, f'{file.stem}_{index}', image.crop(box), mask.crop(box))


SETS = {
    'signs': ('signs', signs),
    'clothing': ('clothing', clothing),
    'rail_front': ('rail', lambda clone, out: rail('front', clone, out)),
    'rail_side': ('rail', lambda clone, out: rail('side', clone, out)),
    'cracks': ('cracks', cracks),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Lays out the sets that are not there yet.

    Raises:
        DataError: If a clone is missing.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('clones', type=Path, help='folder that holds the four clones')
    parser.add_argument('out', type=Path, help='where the five sets go')
    args = parser.parse_args(arguments)

    from cdra_mm.data.staging import staged
    from cdra_mm.errors import DataError

    for name, (clone, lay_out) in SETS.items():
        if not (args.clones / clone).is_dir():
            raise DataError(f'{args.clones / clone} is not there; --help says what to clone')
        if not (args.out / name).exists():
            with staged(args.out, (name,)) as folder:
                lay_out(args.clones / clone, folder / name)
        print(f'{name}: {args.out / name}')


if __name__ == '__main__':
    run(main)
