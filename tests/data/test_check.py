"""``--check`` of segmentation data: every file is looked at, and what is wrong is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from cdra_mm.data import check, inspect_data
from cdra_mm.data.classes import Tally, class_lines

pytest.importorskip('PIL.Image')


@pytest.fixture
def voc(tmp_path: Path, shrink, picture) -> Path:
    shrink('voc')
    base = tmp_path / 'VOCdevkit/VOC2012'
    for folder in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
        (base / folder).mkdir(parents=True)
    for split in ('train', 'val'):
        (base / f'ImageSets/Segmentation/{split}.txt').write_text(f'{split}_0\n{split}_1\n')
        for i in range(2):
            (base / f'JPEGImages/{split}_{i}.jpg').write_bytes(picture())
            (base / f'SegmentationClass/{split}_{i}.png').write_bytes(picture('P', value=i))
    (base / 'JPEGImages/of_another_task.jpg').write_text('not an image')
    return tmp_path


def test_voc_counts_what_its_lists_name_and_explains_the_rest(voc: Path, run) -> None:
    code, output, errors = run('voc', voc, '--check')
    assert (code, errors) == (0, [])
    assert (
        'SegmentationClassAug' in output and 'SBD' in output and f'{voc}/VOCdevkit/VOCaug' in output
    )
    (voc / 'VOCdevkit/VOC2012/SegmentationClassAug').mkdir()
    assert 'SBD' not in run('voc', voc, '--check')[1]


def test_check_counts_images_and_pixels_of_each_class(voc: Path) -> None:
    tally = inspect_data('voc', voc).tallies['']['train']
    assert tally.images == Counter({0: 1, 1: 1})
    assert tally.pixels == Counter({0: 12 * 8, 1: 12 * 8})


DAMAGE = {
    'no label': ('SegmentationClass/val_1.png', None, 'val_1.png is not there'),
    'an empty label': ('SegmentationClass/val_1.png', b'', 'val_1.png is empty (0 bytes)'),
    'an empty image': ('JPEGImages/val_1.jpg', b'', 'val_1.jpg is empty (0 bytes)'),
    'no image': ('JPEGImages/val_0.jpg', None, 'val_0.jpg is not there'),
    'no list': ('ImageSets/Segmentation/val.txt', None, 'val.txt is not there'),
    'a list of another task': (
        'ImageSets/Segmentation/val.txt',
        b'val_0 1\nval_1 -1\n',
        "val.txt:1 expected one name of an image, got 'val_0 1'",
    ),
    'a list with a line twice': (
        'ImageSets/Segmentation/val.txt',
        b'val_0\nval_1\n\nval_0\n',
        'val.txt:4 names val_0, as line 1 does',
    ),
    'a list with an image that is not there': (
        'ImageSets/Segmentation/val.txt',
        b'val_0\nval_1\nval_2\n',
        'val_2.jpg is not there',
    ),
    'a page as an image': ('JPEGImages/val_1.jpg', b'<html>', 'val_1.jpg cannot be decoded'),
}


@pytest.mark.parametrize('file, content, message', DAMAGE.values(), ids=DAMAGE.keys())
def test_check_names_the_file_that_is_damaged(
    file: str, content: bytes | None, message: str, voc: Path, run
) -> None:
    path = voc / 'VOCdevkit/VOC2012' / file
    path.unlink() if content is None else path.write_bytes(content)
    code, output, errors = run('voc', voc, '--check')
    assert code == 2
    assert len(errors) == 1
    assert message in output and message in errors[0]
    assert 'train has' not in errors[0]
    # Nothing was mended or made.
    assert path.exists() == (content is not None)


@pytest.mark.parametrize('keep', [0.5, 0.98])
@pytest.mark.parametrize('file', ['JPEGImages/val_1.jpg', 'SegmentationClass/val_1.png'])
def test_check_decodes_to_the_last_byte(file: str, keep: float, voc: Path, run, picture) -> None:
    path = voc / 'VOCdevkit/VOC2012' / file
    random = Random(0)
    noise = bytes(random.randrange(21) for _ in range(64 * 64))
    pillow = pytest.importorskip('PIL.Image')
    for other in ('JPEGImages/val_1.jpg', 'SegmentationClass/val_1.png'):
        whole = pillow.frombytes('L', (64, 64), noise)
        whole.save(voc / 'VOCdevkit/VOC2012' / other, quality=95)
    assert run('voc', voc, '--check')[0] == 0
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    # Counted, it is there: only decoding shows it.
    assert check('voc', voc).complete
    code, output, errors = run('voc', voc, '--check')
    assert code == 2 and len(errors) == 1
    assert f'{path} cannot be decoded' in errors[0] and '1 wrong:' in output


LABELS = {
    'another size': (('L', (8, 12), 0), '8 x 12 pixels, but its image val_1.jpg is 12 x 8'),
    'an id out of range': (('L', (12, 8), 21), 'holds ids 21, expected 0 to 20 or 255'),
    'colours': (('RGBA', (12, 8), 0), 'has mode RGBA, expected one channel of class ids'),
}


@pytest.mark.parametrize('label, message', LABELS.values(), ids=LABELS.keys())
def test_check_names_the_label_map_that_does_not_fit(
    label: tuple, message: str, voc: Path, run, picture
) -> None:
    path = voc / 'VOCdevkit/VOC2012/SegmentationClass/val_1.png'
    path.write_bytes(picture(*label))
    code, _, errors = run('voc', voc, '--check')
    assert code == 2 and len(errors) == 1
    assert str(path) in errors[0] and message in errors[0]


def test_void_ids_are_no_fault(voc: Path, run, picture) -> None:
    path = voc / 'VOCdevkit/VOC2012/SegmentationClass/val_1.png'
    path.write_bytes(picture('L', value=255))
    assert run('voc', voc, '--check')[0] == 0


def test_check_prints_the_first_faults_and_counts_the_rest(voc: Path, run) -> None:
    names = '\n'.join(f'gone_{i}' for i in range(20))
    (voc / 'VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt').write_text(names)
    code, output, errors = run('voc', voc, '--check')
    assert code == 2 and len(errors) == 1
    assert '40 wrong:' in output and '  and 30 more' in output
    assert output.count('.jpg is not there') == output.count('.png is not there') == 5


def test_check_reports_every_image_it_looks_at(voc: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    inspect_data('voc', voc, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 4) for i in range(5)]


def test_classes_are_a_table_when_few_and_a_summary_when_many() -> None:
    few = class_lines({'train': Tally(Counter({0: 5, 2: 1}), Counter({0: 30, 2: 10}))}, 3)
    assert [line.split() for line in few if '---' not in line] == [
        ['class', 'train'],
        ['0', '5', '(75.0', '%)'],
        ['1', '0', '(0.0', '%)'],
        ['2', '1', '(25.0', '%)'],
    ]
    many = class_lines({'train': Tally(Counter({i: 1 + i % 3 for i in range(30)}))}, 50)
    assert many == [
        '  train: 30 of 50 classes, 1 to 3 images each (median 2); without an image: '
        '30, 31, 32, 33, 34, 35, 36, 37, 38, 39 and 10 more'
    ]
