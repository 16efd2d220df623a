"""Which mask is whose, and what is named because it has no partner."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdra_mm.core import DataError
from cdra_mm.data.own.pairing import find_pairs


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'x')


def pairs(root: Path, **options):
    found = find_pairs(root / 'i', root / 'm', **options)
    return {
        part.split: [
            (str(part.image(p).relative_to(root)), str(part.mask(p).relative_to(root)))
            for p in part.pairs
        ]
        for part in found.parts
    }


ENDINGS = {
    'equal': ('{}.jpg', '{}.png'),
    'mask longer': ('{}.jpg', '{}_mask.png'),
    'image longer': ('{}_rgb.jpg', '{}.png'),
    'both end in something': ('{}_1_leftImg8bit.png', '{}_1_gtFine_labelIds.png'),
    'other case of the suffix': ('{}.JPG', '{}.PNG'),
    'below folders': ('deep/er/{}.tif', 'deep/er/{}_gt.png'),
}


@pytest.mark.parametrize('case', ENDINGS)
def test_names_are_paired_whatever_they_end_in(case, tmp_path):
    image, mask = ENDINGS[case]
    for letter in 'kxyz':
        touch(tmp_path, *(f'{f}/{n.format(letter)}' for f, n in (('i', image), ('m', mask))))
    ((_, found),) = pairs(tmp_path).items()
    assert len(found) == 4
    assert (f'i/{image}'.format('k'), f'm/{mask}'.format('k')) in found


@pytest.mark.parametrize('image_split', [True, False])
@pytest.mark.parametrize('mask_split', [True, False])
def test_folders_called_like_splits_are_splits_in_either(image_split, mask_split, tmp_path):
    for split, names in {'Training': 'ab', 'val': 'c'}.items():
        for name in names:
            touch(tmp_path, f'i/{split}/{name}.jpg' if image_split else f'i/{name}.jpg')
            other = {'Training': 'train', 'val': 'valid'}[split]
            touch(tmp_path, f'm/{other}/{name}.png' if mask_split else f'm/{name}.png')
    found = pairs(tmp_path)
    if not image_split and not mask_split:
        assert len(found['']) == 3
        return
    assert sorted(found) == ['train', 'val']
    assert [Path(image).name for image, _ in found['train']] == ['a.jpg', 'b.jpg']
    assert [Path(mask).name for _, mask in found['val']] == ['c.png']


def test_what_has_no_partner_is_named(tmp_path):
    touch(tmp_path, 'i/a.jpg', 'i/b.jpg', 'm/a.png', 'm/c.png', 'i/.DS_Store', 'i/notes.txt')
    (part,) = find_pairs(tmp_path / 'i', tmp_path / 'm').parts
    assert (part.lone_images, part.lone_masks) == ((Path('b.jpg'),), (Path('c.png'),))
    assert [pair.name for pair in part.pairs] == ['a']


def test_split_without_masks_and_files_outside_the_splits_are_noted(tmp_path):
    touch(tmp_path, 'i/train/a.jpg', 'i/val/b.jpg', 'i/test/c.jpg', 'i/d.jpg')
    touch(tmp_path, 'm/train/a.png', 'm/val/b.png')
    found = find_pairs(tmp_path / 'i', tmp_path / 'm')
    assert [part.split for part in found.parts] == ['train', 'val']
    assert found.notes == (
        'test: left out, it has no masks',
        '1 images outside the folders of the splits are left out (first: d.jpg)',
    )


def test_images_and_masks_in_one_folder_are_told_apart_by_their_endings(tmp_path):
    touch(tmp_path, 'a.jpg', 'a_mask.png', 'b.jpg', 'b_mask.png')
    with pytest.raises(DataError, match='--image-suffix .jpg --mask-suffix _mask.png'):
        find_pairs(tmp_path, tmp_path)
    (part,) = find_pairs(tmp_path, tmp_path, image_suffix='.jpg', mask_suffix='_mask.png').parts
    assert [part.mask(pair).name for pair in part.pairs] == ['a_mask.png', 'b_mask.png']


def test_suffix_that_is_given_selects(tmp_path):
    touch(tmp_path, 'i/a.jpg', 'i/a.tif', 'm/a.png')
    with pytest.raises(DataError, match=r'have one name.*--image-suffix'):
        pairs(tmp_path)
    assert pairs(tmp_path, image_suffix='.tif') == {'': [('i/a.tif', 'm/a.png')]}


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ((), 'i is no folder: expected the folder of the images'),
        (('i/a.txt', 'm/a.png'), 'i holds no images'),
        (('i/a.jpg',), 'm is no folder: expected the folder of the masks'),
        (('i/a.jpg', 'm/b.png'), 'no image of .* has a mask in .*a.jpg and b.png'),
    ],
)
def test_folders_that_give_no_pair_are_refused(files, message, tmp_path):
    touch(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        pairs(tmp_path)
