"""Painted predictions: with any visualizer that a config has, and with none."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from cdra_mm.core import ConfigError
from cdra_mm.mm.painting import paint_predictions

from . import toy

OWN = {'seg': 'SegLocalVisualizer', 'cls': 'UniversalVisualizer'}
VISUALIZERS = {
    'none': lambda own: None,
    'without a back end': lambda own: dict(type=own),
    'without a type': lambda own: dict(vis_backends=[]),
    "mmengine's": lambda own: dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
}


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The files that the toy data set names."""
    monkeypatch.chdir(tmp_path)
    for i in range(8):
        Image.fromarray(toy.picture(i)[0]).save(f'toy_{i}.png')


@pytest.mark.usefixtures('pictures')
@pytest.mark.parametrize('task', OWN)
@pytest.mark.parametrize('kind', VISUALIZERS)
def test_painting_writes_a_picture_of_every_image(task, kind, tmp_path):
    cfg = toy.config(tmp_path, task)
    cfg.pop('visualizer')
    visualizer = VISUALIZERS[kind](OWN[task])
    if visualizer is not None:
        cfg.visualizer = visualizer
    cfg.default_hooks.pop('cdra')
    paint_predictions(cfg, str(tmp_path / 'shown'))
    Runner.from_cfg(cfg).test()
    assert len(list(Path('shown').rglob('*.png'))) == 8


def test_painting_tells_images_of_one_name_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare = toy.ToyData.prepare_data

    def in_a_folder(self, index):
        data = prepare(self, index)
        data['data_samples'].set_metainfo(dict(img_path=f'class_{index}/0.png'))
        return data

    monkeypatch.setattr(toy.ToyData, 'prepare_data', in_a_folder)
    cfg = toy.config(tmp_path, 'cls')
    cfg.default_hooks.pop('cdra')
    cfg.default_hooks.visualization = dict(type='VisualizationHook', enable=False, interval=2)
    paint_predictions(cfg, str(tmp_path / 'shown'))
    Runner.from_cfg(cfg).test()
    names = sorted(path.name for path in (tmp_path / 'shown').rglob('*.png'))
    assert names == [f'0.png_{i}.png' for i in (0, 2, 4, 6)]


def test_painting_keeps_what_the_config_says_of_its_own_visualizer():
    own = dict(type='Mine', alpha=0.3, vis_backends=[dict(type='WandbVisBackend')])
    hooks = dict(visualization=dict(type='SegVisualizationHook', interval=3))
    cfg = Config(dict(default_scope='mmseg', visualizer=own, default_hooks=hooks))
    paint_predictions(cfg, 'shown')
    assert cfg.visualizer.type == 'Mine' and cfg.visualizer.alpha == 0.3
    assert [b.type for b in cfg.visualizer.vis_backends] == ['WandbVisBackend', 'LocalVisBackend']
    assert cfg.default_hooks.visualization.interval == 3 and cfg.default_hooks.visualization.draw


def test_painting_is_for_packages_that_paint():
    with pytest.raises(ConfigError, match='--show-dir is for mmseg and mmpretrain, not mmdet'):
        paint_predictions(Config(dict(default_scope='mmdet')), 'shown')
