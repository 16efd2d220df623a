"""Predictions for a folder: what is written, what is left alone, what is refused."""

from __future__ import annotations

import copy
import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from cdra_mm.core import CheckpointError, ConfigError, DataError
from cdra_mm.mm.export.merging import merge_checkpoint
from cdra_mm.mm.launch import load_config, plain_config, prepare_config
from cdra_mm.mm.prediction import predict_folder

from . import folders, toy


def trained(folder: Path, task: str) -> Path:
    cfg = folders.config(folder, task)
    toy.train(cfg)
    torch.save(merge_checkpoint(cfg, str(folder / 'run/iter_4.pth')).checkpoint, folder / 'm.pth')
    plain_config(cfg).dump(folder / 'plain.py')
    return folder


@pytest.fixture(scope='module')
def seg(tmp_path_factory):
    return trained(tmp_path_factory.mktemp('seg'), 'seg')


@pytest.fixture(scope='module')
def cls(tmp_path_factory):
    return trained(tmp_path_factory.mktemp('cls'), 'cls')


def config(folder: Path, name: str = 'plain') -> Config:
    path = folders.dumped(folder) if name == 'dumped' else folder / f'{name}.py'
    return prepare_config(load_config(path))


def predict(folder, images, out, *, cfg=None, checkpoint='run/iter_4.pth', **options):
    options = dict(device='cpu', tell=lambda line: None) | options
    return predict_folder(cfg or config(folder), str(folder / checkpoint), images, out, **options)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def pictures(folder: Path) -> Path:
    """Images in folders of several depths, two with one stem; one damaged, one no image."""
    for name, index in (('a.jpg', 1), ('a.png', 2), ('sub/a.png', 3), ('sub/deep/b.PNG', 5)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(toy.picture(index)[0]).save(folder / name)
    (folder / 'sub/broken.png').write_bytes(b'\x89PNG no picture')
    (folder / 'notes.txt').write_text('no image')
    return folder


def test_masks_are_what_the_model_predicts_adapted_and_merged(seg, tmp_path):
    from mmseg.apis import inference_model, init_model

    images = seg / 'data/images'
    stock = Config.fromfile(folders.dumped(seg))
    stock.test_pipeline = list(folders.PIPELINES['seg'])
    model = init_model(stock, str(seg / 'run/iter_4.pth'), device='cpu')
    outs = {
        'adapted': predict(seg, images, tmp_path / 'adapted'),
        'dumped': predict(seg, images, tmp_path / 'dumped', cfg=config(seg, 'dumped')),
        'merged': predict(seg, images, tmp_path / 'merged', checkpoint='m.pth'),
    }
    for how, outcome in outs.items():
        assert outcome.num_images == 8 and not outcome.skipped
        for row in rows(outcome.table):
            mask = Image.open(tmp_path / how / 'masks' / row['image'])
            ids = np.array(mask)
            expected = inference_model(model, str(images / row['image'])).pred_sem_seg.data[0]
            assert mask.mode == 'L' and np.array_equal(ids, expected.numpy())
            assert (row['width'], row['height']) == ('32', '32')
            for number, name in enumerate('abcd'):
                share = 100 * float((ids == number).mean())
                assert float(row[f'{name} (percent)']) == pytest.approx(share, abs=1e-3)


def test_labels_come_with_scores_adapted_and_merged(cls, tmp_path):
    images = cls / 'data/images'
    tables = [
        rows(predict(cls, images, tmp_path / name, checkpoint=name, top=3).table)
        for name in ('run/iter_4.pth', 'm.pth')
    ]
    assert len(tables[0]) == 8 * 3
    for row, merged in zip(*tables, strict=True):
        assert float(row['score']) == pytest.approx(float(merged['score']), abs=1e-4)
        assert row['class'] == 'abcd'[int(row['label'])]
    first = tables[0][:3]
    assert [row['rank'] for row in first] == ['1', '2', '3']
    scores = [float(row['score']) for row in first]
    assert scores == sorted(scores, reverse=True) and sum(scores) < 1.0001


@pytest.mark.parametrize('task', ['seg', 'cls'])
def test_folders_keep_their_names_and_nothing_unreadable_stops_the_rest(task, request, tmp_path):
    folder, said = request.getfixturevalue(task), []
    images = pictures(tmp_path / 'images')
    out = tmp_path / 'images/out'  # within: it is not searched
    outcome = predict(folder, images, out, overlays=True, tell=said.append)
    again = predict(folder, images, out, overlays=True, force=True)
    assert outcome == again
    assert outcome.num_images == 4 and outcome.num_others == 1
    ((path, reason),) = outcome.skipped
    assert path == images / 'sub/broken.png' and reason
    assert any(str(path) in line and 'skipped' in line for line in said)
    expected = {'a.jpg.png', 'a.png.png', 'sub/a.png', 'sub/deep/b.png'}
    for name in ('masks', 'overlays') if task == 'seg' else ('overlays',):
        written = {str(p.relative_to(out / name)) for p in (out / name).rglob('*.png')}
        assert written == expected
    listed = {row['image'] for row in rows(outcome.table)}
    assert listed == {'a.jpg', 'a.png', 'sub/a.png', 'sub/deep/b.PNG'}
    drawn = np.array(Image.open(out / 'overlays/sub/a.png'))
    assert drawn.ndim == 3 and drawn.shape[2] == 3


def test_more_classes_than_a_byte_holds_are_written_with_16_bits(seg, tmp_path):
    from cdra_mm.mm.prediction.segmentation import Segmentation

    class Sample:
        class pred_sem_seg:  # noqa: N801
            data = torch.tensor([[[0, 300]]])

    wide = Segmentation.__new__(Segmentation)
    wide.classes = [str(number) for number in range(301)]
    wide.write(Sample, tmp_path / 'a.png')
    assert np.array(Image.open(tmp_path / 'a.png')).tolist() == [[0, 300]]


def test_nothing_is_overwritten_without_force_and_an_image_never(seg, tmp_path):
    images = tmp_path / 'masks'  # where the masks of --out tmp_path go
    images.mkdir()
    shutil.copy(seg / 'data/images/1.png', images / '1.png')
    before = (images / '1.png').read_bytes()
    for force in (False, True):
        with pytest.raises(DataError, match='is one of the images and would be overwritten'):
            predict(seg, images, tmp_path, force=force)
    assert (images / '1.png').read_bytes() == before
    out = tmp_path / 'out'
    (out / 'masks').mkdir(parents=True)
    (out / 'masks/1.png').write_text('precious')
    with pytest.raises(DataError, match=r'1 of the files to be written exist.*--force'):
        predict(seg, images, out)
    assert (out / 'masks/1.png').read_text() == 'precious'
    assert not (out / 'shares.csv').exists()
    predict(seg, images, out, force=True)
    assert np.array(Image.open(out / 'masks/1.png')).shape == (32, 32)


def test_classes_without_names_and_colours_get_them(seg, tmp_path):
    state = torch.load(seg / 'm.pth', weights_only=True)
    torch.save(dict(state_dict=state['state_dict']), seg / 'bare.pth')
    cfg = config(seg)
    cfg.test_dataloader.dataset.pop('metainfo')
    images = seg / 'data/images/1.png'
    outcome = predict(seg, images, tmp_path, cfg=cfg, checkpoint='bare.pth', overlays=True)
    assert list(rows(outcome.table)[0])[3:] == [f'{i} (percent)' for i in range(4)]
    assert (tmp_path / 'overlays/1.png').is_file()


def changed(cfg, **changes):
    cfg = Config(copy.deepcopy(cfg.to_dict()))
    cfg.merge_from_dict(changes)
    return cfg


@pytest.mark.parametrize('checkpoint', ['run/iter_4.pth', 'm.pth'])
@pytest.mark.parametrize(
    'changes',
    [{'model.decode_head.num_classes': 5}, {'model.backbone.arch.embed_dims': 48,
      'model.decode_head.in_channels': 48}],
)  # fmt: skip
def test_checkpoint_that_does_not_fit_is_refused(seg, tmp_path, checkpoint, changes):
    cfg = changed(config(seg), **changes)
    with pytest.raises(CheckpointError, match=r'does not fit|does not store the frozen base'):
        predict(seg, seg / 'data/images', tmp_path / 'out', cfg=cfg, checkpoint=checkpoint)
    assert not (tmp_path / 'out').exists()


def test_checkpoint_of_another_task_is_refused(seg, cls, tmp_path):
    with pytest.raises(CheckpointError, match='does not fit the EncoderDecoder'):
        predict(seg, seg / 'data/images', tmp_path / 'out', checkpoint=cls / 'm.pth')


REFUSED = {
    'folder that is not there': (dict(images='gone'), DataError, 'gone does not exist'),
    'folder without images': (dict(images='run'), DataError, 'no image below'),
    'file as folder': (dict(out='m.pth'), DataError, 'is a file: name a folder'),
    'checkpoint that is not there': (dict(checkpoint='no.pth'), CheckpointError, 'does not exist'),
    'model of another task': (
        {'model.type': 'mmengine.model.ImgDataPreprocessor'},
        ConfigError,
        'expected a segmentor of mmseg or a classifier of mmpretrain',
    ),
    'no test data': (dict(test_dataloader=None), ConfigError, 'no test_dataloader.dataset with'),
    'device that is not there': (dict(device='cuda:77'), ConfigError, 'cuda:77 cannot be used'),
    'pipeline that reads no files': (
        {'test_dataloader.dataset.pipeline': [dict(type='PackSegInputs')]},
        ConfigError,
        'LoadImageFromFile is not found',
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_wrong_input_is_refused_before_anything_is_written(seg, tmp_path, case):
    changes, error, message = copy.deepcopy(REFUSED[case])
    images = seg / changes.pop('images', 'data/images')
    out = seg / changes.pop('out') if 'out' in changes else tmp_path / 'out'
    options = {key: changes.pop(key) for key in ('checkpoint', 'device') if key in changes}
    cfg = config(seg)
    for key, value in changes.items():
        *path, last = key.split('.')
        place = cfg
        for part in path:
            place = place[part]
        place[last] = value
    with pytest.raises(error, match=message):
        predict(seg, images, out, cfg=cfg, **options)
    assert not (tmp_path / 'out').exists()


def test_images_none_of_which_can_be_read_are_refused(seg, tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/a.jpg').write_bytes(b'no picture')
    with pytest.raises(DataError, match='none of 1 images below'):
        predict(seg, tmp_path / 'images', tmp_path / 'out')
