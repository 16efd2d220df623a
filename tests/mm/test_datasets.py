"""VTAB-1k lists: what loads, and what is refused with which words."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmpretrain')

import cv2
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmpretrain.registry import DATASETS

from cdra_mm.errors import ConfigError, DataError
from cdra_mm.mm.datasets import TASK_CLASSES, VTAB1k

SPLITS = VTAB1k.SPLITS
LINES = ['images/a.jpg 0', 'images/b c.jpg 2', 'images/d.jpg 1']


def make_task(root: Path, lines: list[str] = LINES, split: str = 'train800') -> Path:
    (root / 'images').mkdir(parents=True, exist_ok=True)
    for name in ('a', 'b c', 'd'):
        cv2.imwrite(str(root / f'images/{name}.jpg'), np.full((8, 6, 3), 90, np.uint8))
    (root / f'{split}.txt').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return root


def load(root: Path, **kwargs) -> VTAB1k:
    return VTAB1k(str(root), kwargs.pop('split', 'train800'), num_classes=3, **kwargs)


@pytest.mark.parametrize('split', SPLITS)
def test_vtab_reads_paths_with_spaces_in_list_order(tmp_path: Path, split: str) -> None:
    dataset = load(make_task(tmp_path, split=split), split=split)
    assert [Path(dataset[i]['img_path']).name for i in range(3)] == ['a.jpg', 'b c.jpg', 'd.jpg']
    assert dataset.get_gt_labels().tolist() == [0, 2, 1]
    assert dataset.CLASSES == ('0', '1', '2')


def test_vtab_builds_by_dotted_path_and_by_name_from_both_registries(tmp_path: Path) -> None:
    make_task(tmp_path)
    settings = dict(data_root=str(tmp_path), split='train800', num_classes=3)
    for registry in (ROOT_DATASETS, DATASETS):
        for name in ('cdra_mm.mm.datasets.VTAB1k', 'VTAB1k'):
            assert type(registry.build(dict(type=name, **settings))) is VTAB1k


def test_vtab_runs_the_pipeline(tmp_path: Path) -> None:
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(16, 16), keep_ratio=False, backend='pillow'),
        dict(type='PackInputs'),
    ]
    sample = load(make_task(tmp_path), pipeline=pipeline)[1]
    assert sample['inputs'].shape == (3, 16, 16)
    assert sample['data_samples'].gt_label.item() == 2


def test_vtab_ignores_blank_lines_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    make_task(tmp_path)
    text = '\ufeff' + '\r\n'.join([*LINES, '', ' ']) + '\r\n'
    (tmp_path / 'train800.txt').write_bytes(text.encode())
    assert len(load(tmp_path)) == 3


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('images/d.jpg', r'train800\.txt:3: expected "path label", got \'images/d.jpg\''),
        ('images/d.jpg cat', r'train800\.txt:3: expected "path label"'),
        ('images/d.jpg 1.0', r'train800\.txt:3: expected "path label"'),
        ('1', r'train800\.txt:3: expected "path label"'),
        ('images/d.jpg 3', r'train800\.txt:3: label 3 is out of range for 3 classes'),
        ('images/d.jpg -1', r'train800\.txt:3: label -1 is out of range'),
        ('images/a.jpg 0', r'train800\.txt:3: images/a\.jpg is listed already at .*:1'),
        ('images/../images/a.jpg 0', r'train800\.txt:3: .* is listed already at .*:1'),
        ('../d.jpg 1', r'train800\.txt:3: \.\./d\.jpg leaves the data folder'),
        ('images/../../d.jpg 1', r'train800\.txt:3: .* leaves the data folder'),
        ('images/d.jpg 99999999999999999999', r'train800\.txt:3: expected "path label"'),
        ('/etc/d.jpg 1', r'train800\.txt:3: /etc/d\.jpg leaves the data folder'),
    ],
)
def test_vtab_names_file_and_line_of_a_bad_entry(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(make_task(tmp_path, [*LINES[:2], line]))


def test_vtab_names_the_missing_folder_and_where_the_data_come_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'nowhere/dtd does not exist.*VTAB-1k.*CDRA_VTAB_ROOT'):
        VTAB1k(str(tmp_path / 'nowhere/dtd'), 'test')


def test_vtab_names_the_missing_list_and_those_present(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'test\.txt does not exist \(lists there: .*train800\.txt'):
        load(make_task(tmp_path), split='test')


@pytest.mark.parametrize('lines', [[], ['', '  ']])
def test_vtab_refuses_an_empty_list(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(DataError, match=r'train800\.txt lists no image'):
        load(make_task(tmp_path, lines))


def test_vtab_refuses_a_list_that_is_not_text(tmp_path: Path) -> None:
    make_task(tmp_path)
    (tmp_path / 'train800.txt').write_bytes(b'images/a.jpg 0\n\xff\xfe 1\n')
    with pytest.raises(DataError, match=r'train800\.txt is not UTF-8 text \(byte 15\)'):
        load(tmp_path)


def test_vtab_names_the_first_missing_images_and_counts_the_rest(tmp_path: Path) -> None:
    lines = [*LINES, *(f'images/no{i}.jpg 0' for i in range(5))]
    make_task(tmp_path, lines)
    message = r'5 of 8 listed images are missing .*no0\.jpg, images/no1\.jpg, .*no2\.jpg and 2 more'
    with pytest.raises(DataError, match=message):
        load(tmp_path)
    assert len(load(tmp_path, check_images=False)) == 8


def test_vtab_lazy_dataset_reads_nothing_until_asked(tmp_path: Path) -> None:
    dataset = load(tmp_path / 'later', lazy_init=True)
    make_task(tmp_path / 'later')
    dataset.full_init()
    assert len(dataset) == 3


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(split='val'), r"unknown VTAB-1k split 'val'; choose from train800, val200"),
        (dict(split='test', num_classes=2, classes=['a']), 'num_classes=2, but classes holds 1'),
        (dict(split='test', num_classes=0), 'must be positive'),
        (dict(split='test'), r'set num_classes'),
        (dict(split='test', classes='a.txt'), 'must be a list of names'),
    ],
)
def test_vtab_refuses_contradictory_settings(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VTAB1k(str(tmp_path / 'mine'), **settings)


def test_vtab_knows_its_tasks_and_takes_class_names(tmp_path: Path) -> None:
    known = VTAB1k(str(make_task(tmp_path / 'dtd')), 'train800')
    assert known.num_classes == 47 and known.CLASSES[::23] == ('banded', 'marbled', 'zigzagged')
    named = VTAB1k(str(tmp_path / 'dtd'), 'train800', classes=['x', 'y', 'z'])
    assert (named.num_classes, named.CLASSES) == (3, ('x', 'y', 'z'))
    numbered = VTAB1k(str(tmp_path / 'dtd'), 'train800', num_classes=3)
    assert (numbered.num_classes, numbered.CLASSES) == (3, ('0', '1', '2'))


@pytest.mark.parametrize('task', TASK_CLASSES)
def test_vtab_names_every_class_of_a_task_once(task: str) -> None:
    names = VTAB1k.known_classes(task)
    assert names is not None and len(names) == len(set(names)) == TASK_CLASSES[task]
    assert all(name == name.strip() != '' for name in names)
    assert (names[0] == '0') == (task in ('svhn', 'dmlab'))  # digits, and labels without names


def test_vtab_bins_are_those_of_the_protocol() -> None:
    # task_adaptation: label = floor(value * 16 / number of values), in float.
    for task, values in (('dsprites_loc', 32), ('dsprites_ori', 40)):
        for label, name in enumerate(VTAB1k.known_classes(task) or ()):
            members = [v for v in range(values) if int(v // (values / 16)) == label]
            assert f' {members[0]} to {members[-1]} of 0 to {values - 1}' in name
    for label, name in enumerate(VTAB1k.known_classes('clevr_count') or ()):
        assert name == f'{label + 3} objects'


@pytest.mark.shared
@pytest.mark.parametrize(('task', 'tested'), [('caltech101', 1020), ('cifar10', 3000)])
def test_vtab_reads_the_real_lists(shared: Path, task: str, tested: int) -> None:
    root = shared / 'data/vtab-1k' / task
    classes = json.loads((root / 'classes.json').read_text())
    splits = {split: VTAB1k(str(root), split, num_classes=len(classes)) for split in SPLITS}
    sizes = {name: len(split) for name, split in splits.items()}
    assert sizes == {'train800': 800, 'val200': 200, 'train800val200': 1000, 'test': tested}
    labels = {name: np.bincount(split.get_gt_labels()) for name, split in splits.items()}
    assert (labels['train800'] + labels['val200'] == labels['train800val200']).all()
    assert len(labels['test']) == len(classes) and labels['test'].min() == labels['test'].max()
    if task == 'caltech101':  # folder names, as the task's own names are
        assert splits['test'].CLASSES == tuple(name.lower() for name in classes)
