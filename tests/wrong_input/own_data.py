"""Folders of one's own images and masks, as a run sees them before it begins."""

from __future__ import annotations

from pathlib import Path

from cdra_mm.core import CDRAError, ConfigError, DataError
from cdra_mm.mm.data_check import check_config_data, check_data
from tests.mm.data_folders import CLASSIFICATION, SEGMENTATION, sets

from .case import heading

MAKERS = {case.name: (case, sets.segmentation) for case in SEGMENTATION}
MAKERS |= {case.name: (case, sets.classification) for case in CLASSIFICATION}
REFUSED: dict[str, type[CDRAError]] = {
    'images that end in .JPG': DataError,
    'masks that end in _mask.png': DataError,
    'no image at all': DataError,
    'an image without a mask': DataError,
    'an empty mask file': DataError,
    'grey masks stored as RGB': DataError,
    'masks of colours': DataError,
    'ids that begin at 1': DataError,
    'a palette of another length': ConfigError,
    'a mask smaller than its image, in validation': DataError,
    'a list with a byte order mark': DataError,
    'a list with an empty line': DataError,
    'a list whose names have their suffix': DataError,
    'a link that leads back to its own folder': DataError,
    'a preprocessor that pads to less than the crop, and images below the crop': ConfigError,
    'a preprocessor without a size': ConfigError,
    'sliding without a stride': ConfigError,
    'a class more than the head has': DataError,
}
WARNED = (
    'masks of 0 and 255',
    'masks of 0 and 1 with reduce_zero_label',
    'a mask without an image',
    'a head with more classes than the data',
    'a class folder that validation lacks',
    'a preprocessor that pads to much more',
)
FOUND = (
    'a JPEG that is cut off',
    'masks of 16 bits with larger ids',
    'an id beyond the classes in one mask',
    'an id beyond the classes in validation',
    'an image that its EXIF orientation turns',
    'a class that never occurs',
)


def made(folder: Path, name: str):
    """The case and a config of its folder."""
    case, make = MAKERS[name]
    cfg = make(folder)
    case.change(folder, cfg)
    return case, cfg


def before(folder: Path, name: str) -> None:
    check_data(made(folder, name)[1], 'train')


def warned(folder: Path, name: str) -> None:
    case, cfg = made(folder, name)
    assert case.warned in '\n'.join(check_data(cfg, 'train'))


def checked(folder: Path, name: str) -> None:
    case, cfg = made(folder, name)
    report = check_config_data(cfg, workers=0)
    assert report.problem()
    assert case.found in '\n'.join(report.lines())


with heading('Your own images and masks') as (refused, taken):
    for name, error in REFUSED.items():
        refused(name, error, MAKERS[name][0].early)(lambda folder, name=name: before(folder, name))
    for name in WARNED:
        case = MAKERS[name][0]
        taken(name, f'trains, with the warning … {case.warned} …')(
            lambda folder, name=name: warned(folder, name)
        )
    for name in FOUND:
        case = MAKERS[name][0]
        taken(f'{name}, when every file is checked', f'exit 2: … {case.found} …')(
            lambda folder, name=name: checked(folder, name)
        )
