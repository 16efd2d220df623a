"""What values in masks are taken to mean, from files of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdra_mm.core import ConfigError, DataError
from cdra_mm.data.own.labels import interpret, value_of, written
from cdra_mm.data.own.looking import Seen, look_at

from .folders import labels, save

COLOURS = np.array([[60, 16, 152], [0, 255, 0], [155, 155, 155]], np.uint8)


def seen(folder: Path, *masks: tuple[np.ndarray, str | None], suffix: str = '.png') -> Seen:
    """Looks at masks that were saved in these modes."""
    found = Seen()
    pairs = []
    for number, (pixels, mode) in enumerate(masks):
        image = save(folder / f'i{number}.png', np.zeros((*pixels.shape[:2], 3), np.uint8))
        pairs.append((image, save(folder / f'm{number}{suffix}', pixels, mode)))
    for look in look_at(pairs, len(pairs), lambda done, total: None):
        found.add(look)
    assert not found.faults, found.faults[0]
    return found


def grey(*values: int) -> tuple[np.ndarray, None]:
    return labels(0, values).astype(np.uint8), None


def test_ids_are_read_as_they_are_and_255_is_ignored(tmp_path):
    meaning = interpret(seen(tmp_path, grey(0, 1, 2, 255)), ['a', 'b', 'c'])
    assert meaning.classes == ('a', 'b', 'c') and meaning.ids == {0: 0, 1: 1, 2: 2}
    assert meaning.ignored == (255,) and meaning.ignore_index == 255
    assert not meaning.rewrite and not meaning.reduce_zero_label
    assert meaning.notes == ('the value 255 is taken as "ignored" (--ignore says otherwise)',)


def test_class_that_no_mask_holds_keeps_its_id(tmp_path):
    meaning = interpret(seen(tmp_path, grey(0, 1, 3)))
    assert meaning.classes == ('class_0', 'class_1', 'class_2', 'class_3')
    assert not meaning.rewrite and 'no mask holds 2' in meaning.notes[0]


def test_0_and_255_are_a_binary_mask_and_nothing_is_ignored(tmp_path):
    meaning = interpret(seen(tmp_path, grey(0, 255)))
    assert meaning.classes == ('background', 'foreground')
    assert meaning.ids == {0: 0, 255: 1} and not meaning.ignored
    assert meaning.rewrite == 'the masks hold 0 and 255'


def test_one_bit_masks_are_classes_0_and_1(tmp_path):
    meaning = interpret(seen(tmp_path, (labels(0, (0, 255)).astype(np.uint8), '1')))
    assert meaning.ids == {0: 0, 1: 1} and not meaning.rewrite


@pytest.mark.parametrize('mode', ['RGB', 'LA', 'RGBA'])
def test_numbers_in_several_channels_are_rewritten_as_the_numbers(mode, tmp_path):
    meaning = interpret(seen(tmp_path, (labels(0).astype(np.uint8), mode)), ['a', 'b', 'c'])
    assert meaning.ids == {0: 0, 1: 1, 2: 2}
    assert f'stored as {mode}' in meaning.rewrite


def test_colours_are_classes_with_their_palette(tmp_path):
    found = seen(tmp_path, (COLOURS[labels(0)], None))
    meaning = interpret(found, ['building=#3c1098', 'crop=#00ff00'], ['#9b9b9b'])
    assert meaning.classes == ('building', 'crop')
    assert meaning.ids == {(60, 16, 152): 0, (0, 255, 0): 1}
    assert meaning.palette == ((60, 16, 152), (0, 255, 0))
    assert meaning.ignored == ((155, 155, 155),) and meaning.rewrite
    in_order = interpret(found)
    assert [written(value) for value in in_order.ids] == ['#00ff00', '#3c1098', '#9b9b9b']


def test_palette_of_an_indexed_file_is_kept_and_its_numbers_are_read(tmp_path):
    picture = Image.fromarray(labels(0).astype(np.uint8))
    picture.putpalette(COLOURS.ravel().tolist())
    meaning = interpret(seen(tmp_path, (np.asarray(picture), None)))
    assert meaning.palette is None  # an array has lost it
    picture.save(tmp_path / 'm0.png')
    found = Seen()
    for look in look_at([(tmp_path / 'i0.png', tmp_path / 'm0.png')], 1, lambda d, t: None):
        found.add(look)
    meaning = interpret(found)
    assert meaning.palette == tuple(map(tuple, COLOURS.tolist())) and not meaning.rewrite


def test_several_values_of_one_class_are_joined(tmp_path):
    meaning = interpret(
        seen(tmp_path, grey(0, 32, 64, 255)), ['in=255', 'wall=0', 'wall=32', 'x=64']
    )
    assert meaning.classes == ('in', 'wall', 'x')
    assert meaning.ids == {255: 0, 0: 1, 32: 1, 64: 2} and meaning.rewrite


def test_zero_ignored_makes_classes_begin_at_one(tmp_path):
    meaning = interpret(seen(tmp_path, grey(0, 1, 2, 255)), ['a', 'b'], ['0', '255'])
    assert meaning.reduce_zero_label and not meaning.rewrite
    assert meaning.ids == {1: 0, 2: 1} and meaning.ignore_index == 255


def test_value_behind_the_classes_is_ignored_as_it_is(tmp_path):
    meaning = interpret(seen(tmp_path, grey(0, 1, 2)), ['a', 'b'], ['2'])
    assert meaning.ignore_index == 2 and not meaning.rewrite


def test_value_between_the_classes_or_several_values_are_rewritten(tmp_path):
    found = seen(tmp_path, grey(0, 1, 2, 3))
    assert interpret(found, ['a', 'b', 'c'], ['1']).ids == {0: 0, 2: 1, 3: 2}
    assert interpret(found, ['a', 'b', 'c'], ['1']).rewrite
    assert interpret(found, ['a', 'b'], ['2', '3']).rewrite


def test_numbers_that_are_mostly_gaps_are_no_ids(tmp_path):
    meaning = interpret(seen(tmp_path, grey(0, 32, 64, 96)))
    assert meaning.ids == {0: 0, 32: 1, 64: 2, 96: 3} and meaning.rewrite


def test_numbers_of_16_bits_are_read_up_to_255_only(tmp_path):
    small = interpret(seen(tmp_path, (labels(0).astype(np.uint16), None)))
    assert not small.rewrite and small.ids == {0: 0, 1: 1, 2: 2}
    large = interpret(seen(tmp_path, (labels(0, (0, 1, 300)).astype(np.uint16), None)))
    assert large.ids == {0: 0, 1: 1, 300: 2} and 'above 255' in large.rewrite


REFUSED = {
    'one value': ([grey(0)], {}, DataError, 'hold 1 value that count'),
    'names that are too few': (
        [grey(0, 1, 2)], dict(classes=['a']), ConfigError, 'gives 1 names, and the masks hold 3'),
    'name without value': (
        [grey(0, 1)], dict(classes=['a=0', 'b']), ConfigError, 'some of the classes say'),
    'name twice': ([grey(0, 1)], dict(classes=['a', 'a']), ConfigError, 'names a twice'),
    'value of no class': (
        [grey(0, 1, 7)], dict(classes=['a=0', 'b=1']), ConfigError, 'hold 7, which is neither'),
    'no number': ([grey(0, 1)], dict(ignored=['x']), ConfigError, "'x' is no value of a mask"),
    'colours and numbers': (
        [grey(0, 1), (COLOURS[labels(0)], None)], {}, DataError, 'some masks hold colours'),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_meant_is_refused(case, tmp_path):
    masks, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        interpret(seen(tmp_path, *masks), **options)


def test_compressed_masks_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    noisy = (rng.integers(0, 2, (64, 64)) * 255).astype(np.uint8)
    with pytest.raises(DataError, match='JPEG files with'):
        interpret(seen(tmp_path, (noisy, None), suffix='.jpg'))


def test_values_are_written_as_they_are_read():
    for value in (0, 255, (1, 2, 255)):
        assert value_of(written(value)) == value
