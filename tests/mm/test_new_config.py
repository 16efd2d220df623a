"""A config from two folders: it trains as it is, and wrong folders leave nothing behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner

from cdra_mm.core import CDRAError, CheckpointError, ConfigError, DataError
from cdra_mm.mm.launch import load_config, prepare_config
from cdra_mm.mm.new_config import NewConfigOptions, new_config
from cdra_mm.mm.new_config.code import Code, code, statement
from cdra_mm.mm.new_config.models import find_model, shipped_backbones
from tests.data.own.folders import labels, save, write_pair

from . import toy

CLASSES = ('soil', 'crop', 'weed')


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> str:
    """A tiny ViT as timm saves it: two layers, 64 wide, 32 pixels in patches of 8."""
    torch.manual_seed(0)
    vit = timm.create_model(
        'vit_tiny_patch16_224', img_size=32, patch_size=8, depth=4, embed_dim=64, num_heads=1
    )
    path = tmp_path_factory.mktemp('weights') / 'tiny.pth'
    torch.save(vit.state_dict(), path)
    return str(path)


def make(folder: Path, weights: str, **options):
    """The config, and what was told."""
    said: list[str] = []
    wanted = dict(weights=weights, batch_size=2, iterations=2, budget=5.0, out=folder / 'mine.py')
    wanted |= dict(images=folder / 'images', masks=folder / 'masks') | options
    out = new_config(NewConfigOptions(**wanted), tell=said.append)
    return out, said


def read(path: Path):
    cfg = prepare_config(load_config(path))
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].num_workers = 0
        cfg[f'{split}_dataloader'].persistent_workers = False
    return cfg


def trained(path: Path, folder: Path) -> Runner:
    """Two steps of what a config says; only the processes that load images are left out."""
    cfg = read(path)
    cfg.work_dir, cfg.log_level = str(folder / 'run'), 'WARNING'
    cfg.experiment_name = f'new_{next(toy.RUNS)}'
    return toy.train(cfg)


def loaded(path: Path, split: str):
    """The data set of a split."""
    cfg = read(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(cfg[f'{split}_dataloader'].dataset)


def names(dataset) -> set[str]:
    return {Path(dataset.get_data_info(i)['img_path']).stem for i in range(len(dataset))}


def pairs(folder: Path, *names: str, **options) -> Path:
    for index, name in enumerate(names):
        write_pair(folder, name, index, **options)
    return folder


def test_folders_of_splits_make_a_config_that_trains(weights, tmp_path, monkeypatch):
    pairs(tmp_path, *(f'train/{i}' for i in 'abcd'), 'val/e', 'val/f', 'test/g')
    out, said = make(tmp_path, weights, classes=CLASSES)
    assert 'splits by folder: 4 train, 2 val, 1 test' in said
    assert not (tmp_path / 'mine_lists').exists()
    monkeypatch.chdir(tmp_path / 'images')  # it is read from anywhere
    runner = trained(out, tmp_path)
    assert (tmp_path / 'run/iter_2.pth').is_file()
    assert runner.cfg.model.decode_head.num_classes == 3
    assert runner.val_dataloader.dataset.metainfo['classes'] == CLASSES
    assert names(runner.train_dataloader.dataset) == set('abcd')
    assert names(runner.val_dataloader.dataset) == set('ef')
    assert runner.cfg.test_dataloader.dataset.data_prefix.img_path.endswith('/images/test')


def test_share_is_drawn_by_list_without_copies_and_groups_stay_together(weights, tmp_path):
    pairs(tmp_path, *(f'scene{i}_{j}' for i in range(5) for j in range(2)))
    before = sorted(tmp_path.rglob('*'))
    out, said = make(tmp_path, weights)
    assert any('5 groups of names such as scene0 (2 images) are kept together' in s for s in said)
    made = sorted(set(tmp_path.rglob('*')) - set(before))
    lists = tmp_path / 'mine_lists'
    assert made == [out, lists, lists / 'train.txt', lists / 'val.txt']
    listed = {s: (lists / f'{s}.txt').read_text().split() for s in ('train', 'val')}
    assert len(listed['train']) == 8 and len(listed['val']) == 2
    assert len({name.split('_')[0] for name in listed['val']}) == 1
    moved = tmp_path / 'elsewhere'  # config and lists travel together
    moved.mkdir()
    shutil.move(out, moved / out.name)
    shutil.move(lists, moved / lists.name)
    assert names(loaded(moved / out.name, 'val')) == set(listed['val'])


def test_binary_masks_are_converted_on_request_only(weights, tmp_path):
    pairs(tmp_path, *'abcdef', values=(0, 255))
    before = {p: p.read_bytes() for p in tmp_path.rglob('*.png')}
    with pytest.raises(DataError, match=r'hold 0 and 255.*--convert-masks NEW_FOLDER'):
        make(tmp_path, weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['images', 'masks']
    out, said = make(tmp_path, weights, convert=tmp_path / 'ids')
    assert {p: p.read_bytes() for p in before} == before
    sample = loaded(out, 'train')[0]['data_samples']
    assert Path(sample.seg_map_path).parent == tmp_path / 'ids'
    assert sample.gt_sem_seg.data.unique().tolist() == [0, 1]
    assert '6 masks written' in ' '.join(said)


def test_several_suffixes_and_lone_files_make_one_loader_each_pair_once(weights, tmp_path):
    pairs(tmp_path, *'abcd')
    pairs(tmp_path, 'e', 'f', image='.JPG', mask='.png')
    save(tmp_path / 'images/lone.jpg', np.zeros((8, 8, 3), np.uint8))
    out, said = make(tmp_path, weights, val_share=0.5)
    assert any('1 images without mask are left out' in s and 'lone.jpg' in s for s in said)
    found: list[str] = []
    for split in ('train', 'val'):
        dataset = loaded(out, split)
        for part in getattr(dataset, 'datasets', [dataset]):
            found += names(part)
    assert sorted(found) == list('abcdef')


def test_ignored_values_count_nowhere(weights, tmp_path):
    pairs(tmp_path, *'abcd', values=(0, 1, 2, 3))
    cfg = read(make(tmp_path, weights, ignore=['3'])[0])
    assert cfg.model.decode_head.num_classes == 3
    for place in (cfg.model.decode_head, cfg.val_evaluator, cfg.train_dataloader.dataset,
                  cfg.train_pipeline[3]):  # fmt: skip
        assert place.ignore_index == 3
    assert cfg.model.data_preprocessor.seg_pad_val == 3
    out, _ = make(tmp_path, weights, ignore=['0'], force=True)
    sample = loaded(out, 'val')[0]['data_samples']
    assert sample.gt_sem_seg.data.unique().tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize(
    ('mode', 'line'),
    [('L', 'images: 4 of 8 bits, grey'), ('I;16', 'they would be nearly black')],
)
def test_grey_images_train_and_deep_ones_are_told(mode, line, weights, tmp_path):
    pairs(tmp_path, *'abcd', image='.png')
    for name in 'abcd':
        pixels = labels(0) * 1000 if mode == 'I;16' else labels(0) * 80
        save(tmp_path / f'images/{name}.png', pixels.astype(np.uint16 if ';' in mode else np.uint8))
    out, said = make(tmp_path, weights)
    assert any(line in told for told in said), said
    assert loaded(out, 'train')[0]['inputs'].shape[0] == 3


def test_one_bit_masks_train_as_two_classes(weights, tmp_path):
    pairs(tmp_path, *'abcd')
    for name in 'abcd':
        save(tmp_path / f'masks/{name}.png', labels(0, (0, 255)).astype(np.uint8), '1')
    sample = loaded(make(tmp_path, weights)[0], 'val')[0]['data_samples']
    assert sample.gt_sem_seg.data.unique().tolist() == [0, 1]


@pytest.mark.parametrize('head', ['linear4', 'upernet'])
def test_other_heads_build(head, weights, tmp_path):
    pairs(tmp_path, *'abcd')
    cfg = read(make(tmp_path, weights, head=head)[0])
    assert list(cfg.model.backbone.out_indices) == (
        [0, 1, 2, 3] if head == 'upernet' else [-4, -3, -2, -1]
    )


def test_shipped_backbones_are_those_of_dinov2_with_their_download():
    assert shipped_backbones() == ['dinov2-base', 'dinov2-giant', 'dinov2-large', 'dinov2-small']
    part = find_model('dinov2-small', 'linear', '')
    assert (part.size, part.step, part.model['decode_head']['in_channels']) == (518, 14, 384)
    assert part.download.endswith('.pth') or os.environ.get('CDRA_DINOV2_SMALL')


def test_questions_are_asked_for_what_is_open(weights, tmp_path):
    pairs(tmp_path, *'abcd')
    answers = {'names': 'x y z', 'side of the crops': '40', 'percent': '7'}
    asked: list[str] = []

    def ask(question: str, default: str) -> str:
        asked.append(question)
        return next((a for start, a in answers.items() if question.startswith(start)), default)

    wanted = NewConfigOptions(
        tmp_path / 'images', tmp_path / 'masks', tmp_path / 'a.py', weights=weights
    )
    cfg = read(new_config(wanted, tell=lambda line: None, ask=ask))
    assert len(asked) == 6 and not any(question == 'backbone' for question in asked)
    assert cfg.metainfo['classes'] == ('x', 'y', 'z')
    assert tuple(cfg.crop_size) == (40, 40)
    assert cfg.default_hooks.cdra.budget_percent == 7.0


REFUSED = {
    'no folder': (dict(images='gone'), DataError, 'gone is no folder: expected the folder of the'),
    'config that exists': (dict(out='there.py'), ConfigError, 'there.py exists.*--force'),
    'config in a missing folder': (dict(out='no/a.py'), ConfigError, 'is no folder that can be'),
    'config of another kind': (dict(out='a.txt'), ConfigError, 'expected one that ends in .py'),
    'backbone': (
        dict(weights='', backbone='dinov2-bas'), ConfigError, "did you mean 'dinov2-base'?"),
    'head': (dict(head='upper'), ConfigError, "--head 'upper' is unknown.*'upernet'"),
    'weights': (dict(weights='no.pth'), CheckpointError, r'no\.pth \(--weights\) does not exist'),
    'crop': (dict(crop=44), ConfigError, r'no multiple of the patch size 8.*take 40 or 48'),
    'budget': (dict(budget=0.0), ConfigError, r'--budget 0\.0: expected percent'),
    'share': (dict(val_share=1.0), ConfigError, r'--val-share 1\.0: expected a share'),
    'batch': (dict(batch_size=0), ConfigError, '--batch-size 0: expected 1 or more'),
    'batch of UPerNet': (
        dict(batch_size=1, head='upernet'), ConfigError, 'the batch norm of UPerNet needs two'),
    'names': (dict(classes=['a']), ConfigError, 'gives 1 names, and the masks hold 3 values'),
    'conversion over files': (dict(convert='masks/new'), DataError, 'name a new folder beside it'),
    'one group': (dict(group_by='^'), ConfigError, 'all 4 images are one group'),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_wrong_input_leaves_nothing_behind(case, weights, tmp_path):
    options, error, message = REFUSED[case]
    options = dict(options)
    pairs(tmp_path, *'abcd')
    (tmp_path / 'there.py').write_text('precious = 1\n')
    for key in ('images', 'out', 'convert'):
        if key in options:
            options[key] = tmp_path / options[key]
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(error, match=message):
        make(tmp_path, **(dict(weights=weights) | options))
    assert sorted(tmp_path.rglob('*')) == before
    assert (tmp_path / 'there.py').read_text() == 'precious = 1\n'


def test_damaged_files_are_named_before_anything_is_written(weights, tmp_path):
    pairs(tmp_path, *'abcd')
    (tmp_path / 'images/a.jpg').write_bytes(b'\xff\xd8 no picture')
    save(tmp_path / 'masks/c.png', np.zeros((5, 5), np.uint8))
    before, said = sorted(tmp_path.rglob('*')), []
    wanted = NewConfigOptions(
        tmp_path / 'images', tmp_path / 'masks', tmp_path / 'x.py', weights=weights
    )
    with pytest.raises(DataError, match=r'a\.jpg cannot be decoded.* and 1 more files are wrong'):
        new_config(wanted, tell=said.append)
    assert any('c.png is 5 x 5 pixels' in line for line in said)
    assert sorted(tmp_path.rglob('*')) == before


def test_config_that_fails_its_trial_is_not_handed_over(weights, tmp_path, monkeypatch):
    from cdra_mm.mm.new_config import generation

    def fail(path, counts):
        raise DataError('the loader finds less')

    pairs(tmp_path, *'abcd', values=(0, 255))
    monkeypatch.setattr(generation, 'verify_config', fail)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(CDRAError, match='finds less'):
        make(tmp_path, weights, convert=tmp_path / 'ids')
    assert sorted(tmp_path.rglob('*')) == before


def test_what_the_data_check_finds_odd_is_told(weights, tmp_path):
    pairs(tmp_path, *(f'train/{i}' for i in 'ab'), values=(0, 1, 2))
    pairs(tmp_path, 'val/c', values=(0, 1, 2))
    out, said = make(tmp_path, weights, classes=[*CLASSES, 'never'])
    assert any(line.startswith('look at this: ') and 'never' in line for line in said), said
    assert out.is_file()


def test_trial_finds_a_loader_with_other_pairs(weights, tmp_path):
    from cdra_mm.mm.new_config.verification import verify_config

    pairs(tmp_path, *(f'train/{i}' for i in 'abcd'), 'val/e')
    out, _ = make(tmp_path, weights)
    (tmp_path / 'images/train/a.jpg').unlink()
    with pytest.raises(DataError, match='the train loader of the config finds 3 pairs, and 4'):
        verify_config(out, dict(train=4, val=1))


def test_config_that_the_documentation_writes_by_hand_is_read(repository, tmp_path):
    text = (repository / 'docs/new_config.md').read_text(encoding='utf-8')
    (tmp_path / 'mine.py').write_text(text.partition('```python\n')[2].partition('```')[0])
    cfg = prepare_config(load_config(tmp_path / 'mine.py'))
    assert cfg.model.decode_head.num_classes == 3
    assert cfg.train_dataloader.dataset.data_prefix.img_path == 'images/train'
    assert cfg.train_dataloader.dataset.pipeline[1].reduce_zero_label is False


@pytest.mark.parametrize(
    'value',
    [
        dict(a=1, b=[1, (2,), (), {}], c={'x y': None, 1: 'z'}),
        [dict(type='T', names=['a' * 30] * 5, nested=dict(deep=[dict(q='b' * 90)]))],
        ('one',),
    ],
)
def test_code_means_the_value(value):
    assert eval(code(value)) == value  # noqa: S307
    assert all(len(line) <= 100 or "'b" in line for line in code(value).splitlines())


def test_code_keeps_expressions():
    scope: dict = {}
    exec(statement('x', dict(a=Code('1 + 1'), b=[Code('len')])), scope)  # noqa: S102
    assert scope['x'] == dict(a=2, b=[len])
