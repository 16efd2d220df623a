"""Whole runs on our backbones: slim checkpoints, resuming, and APIs that know no hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mmengine.config import Config

from cdra_mm.core import adapters
from tests.models import spread

from . import toy

NAME = 'vit_small_patch14_reg4_dinov2'
OPTIONS = dict(embed_dim=32, depth=3, num_heads=2, patch_size=8)


def base_file(folder: Path) -> str:
    """Weights as timm publishes them, for another image size."""
    path = folder / 'timm.pth'
    if not path.exists():
        torch.manual_seed(7)
        model = timm.create_model(NAME, img_size=48, num_classes=0, **OPTIONS)
        spread(model)
        torch.save(model.state_dict(), path)
    return str(path)


def config(folder: Path, **options: Any) -> Config:
    cfg = toy.config(folder, **options)
    cfg.model.backbone = dict(
        type='cdra_mm.mm.backbones.TimmViT',
        model_name=NAME,
        img_size=toy.SIZE,
        options=OPTIONS,
        init_cfg=dict(type='Pretrained', checkpoint=base_file(folder)),
    )
    return cfg


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('timm')
    return folder, toy.train(config(folder))


def state_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def test_timm_vit_checkpoints_are_slim(run):
    """All of the base is found in its file again, resized positions too."""
    folder, runner = run
    backbone = runner.model.backbone
    found = adapters(backbone)
    assert len(found) > 4 and all(name.startswith('vit.blocks.') for name in found)
    state = state_of(folder / 'run/iter_8.pth')
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen and not {f'backbone.{name}' for name in frozen} & set(state)


def test_timm_vit_slim_checkpoint_in_init_model(run):
    folder, runner = run
    from mmseg.apis import init_model

    cfg = Config.fromfile(sorted((folder / 'run').glob('*.py'))[0])
    model = init_model(cfg, str(folder / 'run/iter_8.pth'), device='cpu')
    expected = runner.model.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_timm_vit_resumed_run_ends_as_an_uninterrupted_one(run):
    folder, runner = run
    resumed = toy.train(
        config(
            folder,
            resume=True,
            load_from=str(folder / 'run/iter_4.pth'),
            work_dir=str(folder / 'resumed'),
        )
    )
    assert resumed.iter == 8
    expected = runner.model.state_dict()
    own = resumed.model.state_dict()
    assert own.keys() == expected.keys()
    for key, value in own.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-7, msg=key)


def test_timm_vit_weights_survive_the_models_initialisation(run):
    """mmengine calls every child's init_weights, and timm's would draw new ones."""
    folder, runner = run
    base = torch.load(base_file(folder))
    own = runner.model.backbone.vit.state_dict()
    key = 'blocks.1.attn.qkv.weight'
    assert torch.equal(own[key], base[key])


def test_multi_layer_vit_in_a_run(tmp_path):
    cfg = toy.config(tmp_path, train_cfg=dict(type='IterBasedTrainLoop', max_iters=2))
    cfg.model.backbone.type = 'cdra_mm.mm.backbones.MultiLayerViT'
    cfg.model.backbone.out_indices = [0, 2]
    cfg.model.decode_head.update(
        in_channels=[32, 32], in_index=[0, 1], input_transform='resize_concat'
    )
    runner = toy.train(cfg)
    assert adapters(runner.model.backbone)
    base = torch.load(toy.base_file(tmp_path))['state_dict']
    key = 'layers.1.attn.qkv.weight'
    assert torch.equal(runner.model.backbone.state_dict()[key], base[key])
