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


def picture(path, size=(16, 16), fill=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), fill, np.uint8)).save(path)


@pytest.fixture
def clones(tmp_path):
    """Pictures whose grey level tells their class, and photographs with a crack on the right."""
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
