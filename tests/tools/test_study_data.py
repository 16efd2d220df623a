"""The data sets that chose no default, laid out from small folders of their repositories' form."""

from __future__ import annotations

import json
import runpy

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from cdra_mm.benchmark.small_tasks import read_dense, read_vtab
from cdra_mm.errors import DataError


def picture(path, size=(16, 16), fill=0, number=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), fill, np.uint8)
    if number is not None:  # so that no two are the same
        pixels[0, 0] = number % 256, number // 256, 0
    Image.fromarray(pixels).save(path)


def picture_of(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


@pytest.fixture
def parts(repository):
    return runpy.run_path(str(repository / 'tools/study_data.py'))['PARTS']


@pytest.fixture
def clones(tmp_path, parts):
    """Pictures whose grey level tells their class, and others whose masks do."""
    root = tmp_path / 'clones'
    for label in range(10):
        for index in range(102):
            picture(root / f'signs/Dataset/{label}/{index}.JPG', fill=20 * label)
        for split, count in (('train', 81), ('validation', 21), ('test', 3)):
            for index in range(count):
                picture(root / f'clothing/{split}/kind{label}/{index}.png', fill=20 * label)
    for view in ('front', 'side'):
        folder = root / 'rail/01_data'
        splits = {split: [f'{view}_{split}'] for split in ('train', 'val', 'test')}
        path = folder / f'data/{view}/splits/fold_0.json'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(splits))
        for (name,) in splits.values():
            picture(folder / f'data_unet/{view}/images/{name}.jpeg', (720, 1280))
            mask = np.zeros((720, 1280), np.uint8)
            mask[:360] = 3
            (folder / f'data_unet/{view}/masks').mkdir(exist_ok=True)
            Image.fromarray(mask).save(folder / f'data_unet/{view}/masks/{name}.png')
    (root / 'cracks/groundTruth').mkdir(parents=True)
    for index in range(1, 119):
        picture(root / f'cracks/image/{index:03d}.jpg', (320, 480))
        found = np.ones((320, 480), np.uint8)
        found[:, 320:] = 2
        truth = {'groundTruth': {'Segmentation': found}}
        savemat(root / f'cracks/groundTruth/{index:03d}.mat', truth)
    for label in range(10):
        for index in range(103):
            for folder in ('trash/dataset-resized', 'flowers/flowers'):
                # The last of each class is the one before once more.
                number = 200 * label + min(index, 101)
                picture(root / f'{folder}/{label}/{index}.png', fill=20 * label, number=number)
        for split, count in (('Testing', 3), ('Training', 103)):
            for index in range(count):  # the first of Training are those of Testing
                number = 200 * label + index
                picture(root / f'brain/{split}/{label}/{index}.png', fill=20 * label, number=number)
    words = ' '.join(word for part in parts for word in part)
    names = np.array(['null', *words.split()], object)
    (root / 'parsing/annotations/pixel-level').mkdir(parents=True)
    savemat(root / 'parsing/label_list.mat', {'label_list': names})
    firsts = [words.split().index(part[0]) + 1 for part in parts]
    for index in range(400):
        picture(root / f'parsing/photos/{index:04d}.jpg')
        found = np.repeat(np.array([0, *firsts], np.uint8), 2)[None].repeat(16, 0)
        path = root / f'parsing/annotations/pixel-level/{index:04d}.mat'
        savemat(path, {'groundtruth': found})
    for part, first in (('training', 21), ('testing', 1)):
        for eye in range(first, first + 20):
            folder = root / f'retina/DRIVE/datasets/{part}'
            picture(folder / f'images/{eye:02d}_{part}.tif', (490, 490))
            mask = np.zeros((490, 490), np.uint8)
            mask[:, :160] = 255
            picture_of(folder / f'1st_manual/{eye:02d}_manual1.gif', mask)
    for index in range(400):
        folder = root / f'nuclei/stage1_train/{index:04d}_of_a_long_name'
        picture(folder / f'images/{folder.name}.png')
        for half in range(2):  # two nuclei: the upper left quarter and the lower right one
            mask = np.zeros((16, 16), np.uint8)
            mask[8 * half : 8 * half + 8, 8 * half : 8 * half + 8] = 255
            picture_of(folder / f'masks/{half}.png', mask)
    return root


@pytest.fixture
def main(repository):
    return runpy.run_path(str(repository / 'tools/study_data.py'))['main']


def test_each_set_is_laid_out_as_the_study_reads_it(clones, main, tmp_path):
    out = tmp_path / 'out'
    main([str(clones), str(out)])
    for name, tested in (('signs', 20), ('clothing', 30)):
        task = read_vtab(out / name, 8, tested=1000)
        assert [len(part[1]) for part in (task.train, task.val, task.test)] == [800, 200, tested]
        for images, labels in (task.train, task.val, task.test):  # grey level and label agree
            assert (images[:, 0].float().mean((1, 2)) / 20).round().long().tolist() == [*labels]
        assert task.train[1].tolist() != sorted(task.train[1].tolist())  # shuffled
    for name, tested in (('trash', 20), ('flowers', 20), ('brain', 30)):
        task = read_vtab(out / name, 8, tested=1000)
        assert [len(part[1]) for part in (task.train, task.val, task.test)] == [800, 200, tested]
        for images, labels in (task.train, task.val, task.test):
            assert (images[:, 0, 4:].float().mean((1, 2)) / 20).round().long().tolist() == [*labels]
        files = [file.read_bytes() for file in (out / name / 'images').rglob('*.png')]
        assert len(set(files)) == len(files) == 1000 + tested
    task = read_dense(out / 'nuclei', 16, every=1)
    assert [len(part[1]) for part in (task.train, task.val, task.test)] == [240, 60, 100]
    assert task.test[1][7, ::8, ::8].tolist() == [[1, 0], [0, 1]]
    task = read_dense(out / 'parsing', 8, every=1)
    assert [len(part[1]) for part in (task.train, task.val, task.test)] == [240, 60, 100]
    assert task.val[1][0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    task = read_dense(out / 'retina', 8, every=1)
    assert [len(part[1]) for part in (task.train, task.val, task.test)] == [135, 45, 180]
    assert task.test[1].flatten(1).float().mean(1).tolist() == [1, 0, 0] * 60
    for name in ('rail_front', 'rail_side'):
        task = read_dense(out / name, 8, every=1)
        assert len(task.train[1]) == len(task.val[1]) == len(task.test[1]) == 1
        assert task.train[1][0, :, 0].tolist() == [3] * 4 + [0] * 4
    with Image.open(out / 'rail_side/img_dir/val/side_val.jpg') as image:
        assert image.size == (640, 360)
    task = read_dense(out / 'cracks', 8, every=1)
    assert [len(part[1]) for part in (task.train, task.val, task.test)] == [420, 108, 180]
    assert task.val[1].flatten(1).float().mean(1).tolist() == [0, 0, 1, 0, 0, 1] * 18
    photographs = [
        {file.name[:3] for file in (out / 'cracks/img_dir' / split).iterdir()}
        for split in ('train', 'val', 'test')
    ]
    assert len(set.union(*photographs)) == sum(map(len, photographs)) == 118


def test_what_is_there_stays_and_what_is_missing_is_named(clones, main, tmp_path):
    out = tmp_path / 'out'
    (out / 'signs').mkdir(parents=True)
    (clones / 'clothing').rename(clones / 'elsewhere')
    with pytest.raises(DataError, match='clothing is not there; --help says what to clone'):
        main([str(clones), str(out)])
    assert [path.name for path in out.iterdir()] == ['signs']
    assert list((out / 'signs').iterdir()) == []
