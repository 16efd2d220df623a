"""What is seen of files: sizes as readers see them, layouts, and what is wrong."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cdra_mm.data.own.looking import MOST_VALUES, Seen, look_at

from .folders import SIZE, labels, save, write_pair


def look(*pairs):
    found = Seen()
    for seen in look_at(pairs, len(pairs), lambda done, total: None):
        found.add(seen)
    return found


def test_pair_is_counted_in_pixels_and_images(tmp_path):
    write_pair(tmp_path, 'a')
    write_pair(tmp_path, 'b', values=(0, 1))
    found = look(*((tmp_path / f'images/{n}.jpg', tmp_path / f'masks/{n}.png') for n in 'ab'))
    assert found.sizes == {(SIZE[1], SIZE[0]): 2} and not found.faults
    assert found.images_with == {0: 2, 1: 2, 2: 1}
    assert found.pixels_with.total() == 2 * SIZE[0] * SIZE[1]
    assert found.mask_formats == {'PNG': 2}


def test_image_that_a_camera_turned_has_the_size_that_readers_see(tmp_path):
    picture = Image.fromarray(np.zeros((*SIZE[::-1], 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / 'a.jpg', exif=exif)
    save(tmp_path / 'a.png', labels(0).astype(np.uint8))
    assert not look((tmp_path / 'a.jpg', tmp_path / 'a.png')).faults


def test_brightest_of_16_bits_is_kept(tmp_path):
    save(tmp_path / 'a.png', np.full(SIZE, 4000, np.uint16))
    save(tmp_path / 'm.png', labels(0).astype(np.uint8))
    found = look((tmp_path / 'a.png', tmp_path / 'm.png'))
    assert found.brightest == 4000 and list(found.modes) == ['I;16']


def test_what_is_wrong_names_the_file(tmp_path):
    write_pair(tmp_path, 'a')
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8 no picture')
    save(tmp_path / 'small.png', np.zeros((4, 4), np.uint8))
    many = np.arange(MOST_VALUES + 1, dtype=np.uint16)[None]
    save(tmp_path / 'many.png', many)
    save(tmp_path / 'wide.png', np.zeros((*many.shape, 3), np.uint8))
    image, mask = tmp_path / 'images/a.jpg', tmp_path / 'masks/a.png'
    said = [
        str(fault)
        for fault in look(
            (tmp_path / 'broken.jpg', mask), (image, tmp_path / 'small.png'),
            (tmp_path / 'wide.png', tmp_path / 'many.png'),
        ).faults
    ]  # fmt: skip
    assert 'broken.jpg cannot be decoded' in said[0]
    assert 'small.png is 4 x 4 pixels, but its image a.jpg is 32 x 24' in said[1]
    assert 'many.png has more than 256 values' in said[2]
