"""Adapted checkpoints in APIs that know no hooks, and the base weights they need."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch.nn import functional as F

from cdra_mm.core import CheckpointError, adapters
from cdra_mm.mm.checkpoints.base_source import BaseSource
from cdra_mm.mm.checkpoints.record import read_record

from . import toy

PICTURES = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]


@pytest.fixture(scope='module')
def seg(tmp_path_factory):
    folder = tmp_path_factory.mktemp('seg')
    return folder, toy.train(toy.config(folder))


@pytest.fixture(scope='module')
def cls(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cls')
    return folder, toy.train(toy.config(folder, 'cls'))


def dumped(folder: Path) -> Config:
    """The config that the run has left in its work directory."""
    cfg = Config.fromfile(sorted((folder / 'run').glob('*.py'))[0])
    cfg.test_dataloader.dataset.pipeline = PICTURES
    cfg.test_pipeline = PICTURES
    return cfg


def expected(runner: Runner, path: str) -> torch.Tensor:
    model = runner.model.eval()
    with torch.no_grad():
        image = torch.from_numpy(np.array(toy.Image.open(path))).permute(2, 0, 1)
        image = image.flip(0)  # inference reads BGR
        data = model.data_preprocessor(dict(inputs=[image], data_samples=None))
        out = model(data['inputs'], None, mode='tensor')
    if out.dim() == 4:
        out = F.interpolate(out, (toy.SIZE, toy.SIZE), mode='bilinear', align_corners=False)
    return out


def test_init_model_loads_what_a_run_has_saved(seg):
    folder, runner = seg
    from mmseg.apis import inference_model, init_model

    model = init_model(dumped(folder), str(folder / 'run/iter_8.pth'), device='cpu')
    assert adapters(model.backbone).keys() == adapters(runner.model.backbone).keys()
    state = runner.model.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    path = toy.write_pictures(folder / 'pictures')[0]
    logits = inference_model(model, path).seg_logits.data
    torch.testing.assert_close(logits, expected(runner, path)[0], atol=1e-5, rtol=1e-5)


def test_mmseg_inferencer_loads_what_a_run_has_saved(seg):
    folder, runner = seg
    from mmseg.apis import MMSegInferencer

    cfg = dumped(folder)
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='PackSegInputs'),
    ]
    cfg.dump(str(folder / 'inferencer.py'))
    inferencer = MMSegInferencer(
        str(folder / 'inferencer.py'), str(folder / 'run/iter_8.pth'), device='cpu'
    )
    path = toy.write_pictures(folder / 'pictures')[1]
    prediction = inferencer(path, return_datasamples=True).pred_sem_seg.data
    assert torch.equal(prediction[0], expected(runner, path)[0].argmax(0))


def test_mmpretrain_inferencer_loads_what_a_run_has_saved(cls):
    folder, runner = cls
    from mmpretrain import ImageClassificationInferencer

    cfg = dumped(folder)
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='PackInputs'),
    ]
    inferencer = ImageClassificationInferencer(
        cfg, str(folder / 'run/iter_8.pth'), device='cpu', classes=list('abcd')
    )
    path = toy.write_pictures(folder / 'pictures')[0]
    (result,) = inferencer(path)
    scores = expected(runner, path).softmax(-1)[0]
    np.testing.assert_allclose(result['pred_scores'], scores.numpy(), atol=1e-5)


def test_a_moved_base_is_found_through_the_config(seg, tmp_path):
    folder, runner = seg
    from mmseg.apis import init_model

    moved = tmp_path / 'elsewhere.pth'
    shutil.copy(toy.base_file(folder), moved)
    (folder / 'base.pth').rename(folder / 'hidden.pth')
    try:
        cfg = dumped(folder)
        cfg.model.backbone.backbone.init_cfg.checkpoint = str(moved)
        model = init_model(cfg, str(folder / 'run/iter_8.pth'), device='cpu')
        state = runner.model.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    finally:
        (folder / 'hidden.pth').rename(folder / 'base.pth')


@pytest.mark.parametrize('how', ['missing', 'other weights'])
def test_without_its_base_a_checkpoint_is_refused(seg, how):
    folder, _ = seg
    from mmseg.apis import init_model

    base = folder / 'base.pth'
    base.rename(folder / 'hidden.pth')
    if how == 'other weights':
        state = torch.load(folder / 'hidden.pth', weights_only=True)['state_dict']
        torch.save({'state_dict': {k: v + 1 for k, v in state.items()}}, base)
    try:
        with pytest.raises(CheckpointError, match=r'does not store the frozen base.*base\.pth'):
            init_model(dumped(folder), str(folder / 'run/iter_8.pth'), device='cpu')
    finally:
        (folder / 'hidden.pth').rename(base)


def test_a_base_from_load_from_is_remembered(tmp_path):
    cfg = toy.config(tmp_path)
    cfg.default_hooks.pop('cdra')
    whole = toy.train(cfg)  # a plain checkpoint of the whole model
    cfg = toy.config(tmp_path, load_from=str(tmp_path / 'run/iter_8.pth'))
    cfg.work_dir = str(tmp_path / 'adapted')
    runner = toy.train(cfg)
    checkpoint = torch.load(tmp_path / 'adapted/iter_8.pth', weights_only=False)
    assert read_record(checkpoint['state_dict'], 'backbone.').base == BaseSource(
        'checkpoint', str(tmp_path / 'run/iter_8.pth'), 'backbone.'
    )
    name = 'patch_embed.projection.weight'
    assert torch.equal(
        runner.model.backbone.state_dict()[name], whole.model.backbone.state_dict()[name]
    )
    cfg = toy.config(tmp_path, load_from=str(tmp_path / 'adapted/iter_8.pth'))
    cfg.work_dir = str(tmp_path / 'tested')
    tested = Runner.from_cfg(cfg)
    tested.test()
    state = runner.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in tested.model.state_dict().items())


@pytest.mark.parametrize('how', ['no pretrained weights', 'save_base'])
def test_a_base_that_nothing_brings_back_is_stored(tmp_path, how, capsys):
    cfg = toy.config(tmp_path, cdra=dict(save_base=how == 'save_base'))
    if how != 'save_base':
        cfg.model.backbone.pop('init_cfg')
    runner = toy.train(cfg)
    checkpoint = torch.load(tmp_path / 'run/iter_8.pth', weights_only=False)
    assert set(runner.model.state_dict()) <= set(checkpoint['state_dict'])
    assert read_record(checkpoint['state_dict'], 'backbone.').base is None
    warned = 'no pretrained weights' in capsys.readouterr().out
    assert warned == (how != 'save_base')

    (tmp_path / 'base.pth').unlink(missing_ok=True)
    cfg.load_from = str(tmp_path / 'run/iter_8.pth')
    cfg.work_dir = str(tmp_path / 'tested')
    tested = Runner.from_cfg(cfg)
    tested.test()
    state = runner.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in tested.model.state_dict().items())


def test_a_partial_base_is_completed_by_the_checkpoint(tmp_path, capsys):
    path = toy.base_file(tmp_path)
    state = torch.load(path, weights_only=True)['state_dict']
    state.pop('layers.1.attn.proj.weight')
    torch.save({'state_dict': state}, path)
    runner = toy.train(toy.config(tmp_path))
    assert 'missing are layers.1.attn.proj.weight' in capsys.readouterr().out
    keys = torch.load(tmp_path / 'run/iter_8.pth', weights_only=False)['state_dict']
    assert 'backbone.layers.1.attn.proj.weight' in keys
    assert 'backbone.layers.0.attn.proj.weight' not in keys
    cfg = toy.config(tmp_path, load_from=str(tmp_path / 'run/iter_8.pth'))
    tested = Runner.from_cfg(cfg)
    tested.test()
    state = runner.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in tested.model.state_dict().items())


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        ('record', 'record of the checkpoint is damaged'),
        ('adapter', 'damaged.*lacks'),
        ('tensor', 'damaged or made for another architecture'),
    ],
)
def test_a_damaged_checkpoint_is_refused(seg, tmp_path, damage, message):
    folder, _ = seg
    checkpoint = torch.load(folder / 'run/iter_8.pth', weights_only=False)
    state = checkpoint['state_dict']
    key = next(k for k in state if k.endswith('.up'))
    if damage == 'record':
        state['backbone.cdra_record'] = state['backbone.cdra_record'][:50]
    elif damage == 'adapter':
        stem = key.removesuffix('up')
        for name in [k for k in state if k.startswith(stem)]:
            del state[name]
    else:
        state[key] = state[key][:, :0]
    torch.save(checkpoint, tmp_path / 'damaged.pth')
    cfg = toy.config(folder, load_from=str(tmp_path / 'damaged.pth'), work_dir=str(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        Runner.from_cfg(cfg).test()


def test_a_checkpoint_of_another_architecture_is_refused(seg, tmp_path):
    folder, _ = seg
    cfg = toy.config(folder, load_from=str(folder / 'run/iter_8.pth'), work_dir=str(tmp_path))
    cfg.model.backbone.arch = dict(toy.ARCH, num_layers=2)
    with pytest.raises(CheckpointError, match='does not fit VisionTransformer'):
        Runner.from_cfg(cfg).test()


def test_pretrained_weights_of_another_architecture_are_refused(tmp_path):
    cfg = toy.config(tmp_path)
    cfg.model.backbone.arch = dict(toy.ARCH, embed_dims=48)
    cfg.model.decode_head.in_channels = 48
    with pytest.raises(CheckpointError, match=r'base\.pth.*brings 0 of the \d+ weight matrices'):
        toy.train(cfg)
