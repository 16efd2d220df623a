"""FGVC's JSON lists: what loads, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmpretrain')

from mmengine.registry import DATASETS
from PIL import Image

from cdra_mm.errors import ConfigError, DataError
from cdra_mm.mm.datasets import FGVC, FGVC_SETS

# Ids with a gap, a class in one split only: only the union of all three numbers them right.
LISTS = {
    'train': {'a/1.jpg': 40, 'b c/2.jpg': 7},
    'val': {'a/3.jpg': 40},
    'test': {'b c/4.jpg': 7, 'd/5.jpg': 12},
}


def make_set(
    folder: Path, images: str = 'images', lists: dict[str, dict[str, Any]] = LISTS
) -> Path:
    for name, labels in lists.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{name}.json').write_text(json.dumps(labels, indent=1), encoding='utf-8')
        for path in labels:
            file = folder / images / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8, 6)).save(file)
    return folder


def load(root: Path, split: str = 'train', **kwargs: Any) -> FGVC:
    return FGVC(str(root), split, num_classes=kwargs.pop('num_classes', 3), **kwargs)


@pytest.mark.parametrize(
    ('split', 'names', 'labels'),
    [
        ('train', ['1.jpg', '2.jpg'], [2, 0]),
        ('val', ['3.jpg'], [2]),
        ('trainval', ['1.jpg', '2.jpg', '3.jpg'], [2, 0, 2]),
        ('test', ['4.jpg', '5.jpg'], [0, 1]),
    ],
)
def test_fgvc_numbers_classes_over_all_lists(tmp_path: Path, split, names, labels) -> None:
    dataset = load(make_set(tmp_path), split)
    assert [Path(dataset[i]['img_path']).name for i in range(len(dataset))] == names
    assert dataset.get_gt_labels().tolist() == labels
    assert dataset.CLASSES == ('0', '1', '2')


def test_fgvc_builds_by_dotted_path_and_runs_the_pipeline(tmp_path: Path) -> None:
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    settings = dict(data_root=str(make_set(tmp_path)), split='test', num_classes=3)
    dataset = DATASETS.build(dict(type='cdra_mm.mm.datasets.FGVC', pipeline=pipeline, **settings))
    assert type(dataset) is FGVC
    assert dataset[1]['inputs'].shape == (3, 6, 8)
    assert dataset[1]['data_samples'].gt_label.item() == 1


@pytest.mark.parametrize(
    ('folder', 'images'),
    [
        ('CUB_200_2011', 'images'),
        ('NABirds', 'images'),
        ('OxfordFlowers', '.'),
        ('StanfordDogs', 'Images'),
        ('StanfordDogs', '.'),
        ('StanfordCars', '.'),
    ],
)
def test_fgvc_knows_its_sets_by_folder(tmp_path: Path, folder: str, images: str) -> None:
    number = FGVC_SETS[folder].num_classes
    lists = {
        'train': {f'{i}/x.jpg': i + 1 for i in range(0, number, 2)},
        'val': {'0/y.jpg': 1},
        'test': {f'{i}/z.jpg': i + 1 for i in range(number)},
    }
    root = make_set(tmp_path / folder, images, lists)
    dataset = FGVC(str(root), 'test')
    assert dataset.num_classes == number == len(dataset.CLASSES)
    assert dataset.get_gt_labels().tolist() == list(range(number))
    assert Path(dataset[0]['img_path']).parent.parent == root / images


def test_fgvc_takes_another_image_root(tmp_path: Path) -> None:
    root = make_set(tmp_path, 'pictures')
    with pytest.raises(DataError, match=r'2 of 2 listed images are missing under .*images: a/1'):
        load(root)
    first = load(root, image_root='pictures')[0]
    assert Path(first['img_path']) == root / 'pictures/a/1.jpg'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"a/1.jpg": 40,\n "a/2.jpg" 7}', r'val\.json:2: malformed JSON in column 12'),
        ('{"a/3.jpg": 40', r'val\.json:1: malformed JSON'),
        ('', r'val\.json:1: malformed JSON'),
        ('["a/3.jpg"]', r'val\.json: its content is a list; expected one flat object'),
        ('"a/3.jpg"', r'val\.json: its content is a str'),
        ('[' * 100000, r'val\.json: no list of images'),
        ('{"a/3.jpg": ' + '9' * 5000 + '}', r'val\.json: no list of images'),
        ('{}', r'val\.json lists no image'),
        ('{\n"a/3.jpg": "40"}', r"val\.json:2: the class id of 'a/3\.jpg' must .*got '40'"),
        ('{\n"a/3.jpg": 40.0}', r'val\.json:2: .* must be an integer, got 40\.0'),
        ('{\n"a/3.jpg": true}', r'val\.json:2: .* must be an integer, got True'),
        ('{\n"a/3.jpg": null}', r'val\.json:2: .* must be an integer, got None'),
        ('{\n"a/3.jpg": NaN}', r'val\.json:2: .* must be an integer, got nan'),
        ('{\n"a/3.jpg": {"id": 1}}', r'val\.json:2: .* must be an integer, got an object'),
        ('{\n"a/3.jpg": [1]}', r'val\.json:2: .* must be an integer, got \[1\]'),
        (
            '{"a/3.jpg": 40,\n"a/9.jpg": 7,\n"a/3.jpg": 7}',
            r'val\.json:3: a/3\.jpg is listed already at .*val\.json:1',
        ),
        (
            '{"a/3.jpg": 40,\n"a/./3.jpg": 7}',
            r'val\.json:2: a/\./3\.jpg is listed already at .*val\.json:1',
        ),
        ('{\n"../3.jpg": 40}', r'val\.json:2: \.\./3\.jpg leaves the data folder'),
        ('{\n"a/../../3.jpg": 40}', r'val\.json:2: .* leaves the data folder'),
        ('{\n"\\/etc\\/3.jpg": 40}', r'val\.json:2: /etc/3\.jpg leaves the data folder'),
        ('{\n"": 40}', r"val\.json:2: '' is no path"),
        ('{\n"a/\\u0000.jpg": 40}', r'val\.json:2: .* is no path'),
    ],
)
def test_fgvc_names_file_and_line_of_a_bad_entry(tmp_path: Path, text: str, message: str) -> None:
    make_set(tmp_path)
    (tmp_path / 'val.json').write_text(text, encoding='utf-8')
    with pytest.raises(DataError, match=message):  # whichever split is asked for
        load(tmp_path, 'test')


def test_fgvc_finds_the_line_of_a_name_beyond_ascii(tmp_path: Path) -> None:
    make_set(tmp_path)
    for text in ('{\n\n"Zaunkönig.jpg": 1.5}', '{\n\n"Zaunk\\u00f6nig.jpg": 1.5}'):
        (tmp_path / 'val.json').write_text('\ufeff' + text, encoding='utf-8')
        with pytest.raises(DataError, match=r"val\.json:3: the class id of 'Zaunkönig\.jpg'"):
            load(tmp_path)


def test_fgvc_refuses_a_list_that_is_not_text(tmp_path: Path) -> None:
    (make_set(tmp_path) / 'test.json').write_bytes(b'{"\xff\xfe": 1}')
    with pytest.raises(DataError, match=r'test\.json is not UTF-8 text \(byte 2\)'):
        load(tmp_path)


def test_fgvc_refuses_an_image_in_two_splits(tmp_path: Path) -> None:
    lists = {**LISTS, 'test': {**LISTS['test'], './a//1.jpg': 40}}
    make_set(tmp_path, lists=lists)
    with pytest.raises(DataError, match=r'\./a//1\.jpg stands in train\.json and in test\.json'):
        load(tmp_path, 'val')


@pytest.mark.parametrize('number', [2, 4])
def test_fgvc_refuses_another_number_of_classes(tmp_path: Path, number: int) -> None:
    message = rf'hold 3 classes \(ids 7 to 40\), expected {number}: .* num_classes=3'
    with pytest.raises(DataError, match=message):
        load(make_set(tmp_path), num_classes=number)


def test_fgvc_refuses_fewer_classes_than_the_set_has_unless_told(tmp_path: Path) -> None:
    root = make_set(tmp_path / 'StanfordCars', '.')
    with pytest.raises(DataError, match=r'hold 3 classes .* expected 196'):
        FGVC(str(root), 'test')
    assert FGVC(str(root), 'test', num_classes=3).num_classes == 3


def test_fgvc_names_a_missing_folder_list_or_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'FGVC folder .*nowhere does not exist.*CDRA_FGVC_ROOT'):
        load(tmp_path / 'nowhere')
    root = make_set(tmp_path / 'set')
    (root / 'images/a/3.jpg').unlink()
    with pytest.raises(DataError, match=r'1 of 1 listed images are missing under .*: a/3\.jpg\. '):
        load(root, 'val')
    assert len(load(root, 'val', check_images=False)) == 1
    (root / 'val.json').unlink()
    with pytest.raises(DataError, match=r"val\.json does not exist \(lists there: \['test\.json"):
        load(root, 'test')


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(split='train800'), r"unknown FGVC split 'train800'; choose from train, val, test"),
        (dict(split='test'), r"'mine' is no FGVC data set that is known here: set num_classes"),
        (dict(split='test', num_classes=2, classes=['a']), 'num_classes=2, but classes holds 1'),
        (dict(split='test', classes=[]), 'must be positive'),
    ],
)
def test_fgvc_refuses_contradictory_settings(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FGVC(str(tmp_path / 'mine'), **settings)
