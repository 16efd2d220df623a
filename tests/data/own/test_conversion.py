"""Converted masks hold the ids, and the user's files are as they were."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cdra_mm.core import DataError
from cdra_mm.data.own.mask_conversion import check_new_folder, convert_masks
from cdra_mm.data.own.pairing import find_pairs

from .folders import labels, save, write_pair

COLOURS = np.array([[60, 16, 152], [7, 7, 7], [155, 155, 155]], np.uint8)
PACKED = [tuple(colour) for colour in COLOURS.tolist()]
KINDS = {
    '0 and 255': (lambda: labels(0, (0, 255)).astype(np.uint8), None, {0: 0, 255: 1}, ()),
    'colours': (lambda: COLOURS[labels(0)], None, {PACKED[0]: 0, PACKED[1]: 1}, (PACKED[2],)),
    'grey as RGB': (lambda: labels(0).astype(np.uint8), 'RGB', {0: 0, 1: 1, 2: 2}, ()),
    'with transparency': (lambda: labels(0).astype(np.uint8), 'LA', {0: 0, 1: 1, 2: 2}, ()),
    '16 bits': (lambda: labels(0, (0, 1, 300)).astype(np.uint16), None, {0: 0, 1: 1}, (300,)),
}


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_mask_becomes_ids(kind, tmp_path):
    make, mode, ids, ignored = KINDS[kind]
    for name in ('train/a', 'train/sub/b', 'val/c'):
        write_pair(tmp_path, name)
        save(tmp_path / f'masks/{name}.png', make(), mode)
    pairing = find_pairs(tmp_path / 'images', tmp_path / 'masks')
    before = {path: path.read_bytes() for path in tmp_path.rglob('*.png')}
    moved = convert_masks(pairing, tmp_path / 'new', ids, ignored)
    expected = np.array([*ids.values(), *[255] * len(ignored)])[
        labels(0, range(len(ids) + len(ignored)))
    ]
    paths = [part.mask(pair) for part in moved.parts for pair in part.pairs]
    assert {str(path.relative_to(tmp_path / 'new')) for path in paths} == {
        'train/a.png', 'train/sub/b.png', 'val/c.png'
    }  # fmt: skip
    for path in paths:
        with Image.open(path) as picture:
            assert picture.mode == 'L' and np.array_equal(np.array(picture), expected)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize('place', ['masks', 'masks/new', 'images/new', 'full', 'file'])
def test_folder_that_is_not_new_is_refused(place, tmp_path):
    write_pair(tmp_path, 'a')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/x').write_text('x')
    (tmp_path / 'file').write_text('x')
    pairing = find_pairs(tmp_path / 'images', tmp_path / 'masks')
    with pytest.raises(DataError, match='name a new folder'):
        check_new_folder(tmp_path / place, pairing)


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path):
    write_pair(tmp_path, 'a', values=(0, 1, 2))
    pairing = find_pairs(tmp_path / 'images', tmp_path / 'masks')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(DataError, match=r'a\.png has changed since it was looked at: it holds 2'):
        convert_masks(pairing, tmp_path / 'new', {0: 0, 1: 1}, ())
    assert sorted(tmp_path.rglob('*')) == before
