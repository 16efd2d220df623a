"""The classification recipes run: at reduced size on generated data, and on real images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmpretrain')

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS
from PIL import Image

from cdra_mm.mm.launch import build_runner, load_config, prepare_config

REPO = Path(__file__).parents[1]
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def load(name: str, *overrides: str, final_run: bool = False) -> Config:
    return load_config(REPO / f'configs/{name}.py', overrides, final_run=final_run)


def write_vtab(folder: Path, num_classes: int) -> None:
    """A task of 12 images, its lists in the community's layout."""
    parts = {'train800': 4, 'val200': 4, 'test': 4}
    lines = {name: [] for name in parts}
    for name, count in parts.items():
        for i in range(count):
            lines[name].append(f'images/{name}/{i:06d}.jpg {i % num_classes}')
            write_image(folder / f'images/{name}/{i:06d}.jpg', i)
    lines['train800val200'] = lines['train800'] + lines['val200']
    for name, entries in lines.items():
        (folder / f'{name}.txt').write_text('\n'.join(entries) + '\n')


def write_fgvc(folder: Path, num_classes: int) -> None:
    """A set of one test image a class and 8 others, ids from 1 on."""
    for name, count in {'train': 4, 'val': 4, 'test': num_classes}.items():
        labels = {f'{name}/{i}.jpg': i + 1 for i in range(count)}
        (folder / 'images').mkdir(parents=True, exist_ok=True)
        (folder / f'{name}.json').write_text(json.dumps(labels))
        for i, path in enumerate(labels):
            write_image(folder / path, i)


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 30, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def reduce(cfg: Config, folder: Path, batch: int) -> Config:
    """The recipe at 32 pixels with a tiny backbone, whose base file it writes; nothing else."""
    backbone = cfg.model.backbone
    backbone.arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    backbone.update(img_size=32, patch_size=8)
    cfg.model.head.in_channels = 32
    init_default_scope('mmpretrain')
    source = MODELS.build({k: v for k, v in backbone.items() if k != 'init_cfg'})
    source.init_weights()
    torch.save({'state_dict': source.state_dict()}, folder / 'base.pth')
    backbone.init_cfg.checkpoint = str(folder / 'base.pth')
    for loader in LOADERS:
        cfg[loader].update(num_workers=0, persistent_workers=False)
        for step in cfg[loader].dataset.pipeline:
            if 'scale' in step:
                step.scale = tuple(side * 32 // 224 for side in step.scale)
            if 'crop_size' in step:
                step.crop_size = 32
    cfg.train_dataloader.batch_size = batch
    cfg.default_hooks.cdra.update(budget_percent=5.0, num_samples=4)
    cfg.work_dir = str(folder / 'run')
    cfg.experiment_name = folder.name
    return prepare_config(cfg)


# Config, folder, its variable, its writer, classes, test images.
RECIPES = [
    ('vtab/clevr_dist', 'clevr_dist', 'CDRA_VTAB_ROOT', write_vtab, 6, 4),
    ('fgvc/oxford_flowers', 'OxfordFlowers', 'CDRA_FGVC_ROOT', write_fgvc, 102, 102),
]


@pytest.mark.parametrize(
    ('name', 'folder', 'variable', 'write', 'classes', 'tested'),
    RECIPES,
    ids=[recipe[0] for recipe in RECIPES],
)
@pytest.mark.parametrize('final_run', [False, True])
def test_recipe_runs_through_the_hook(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    folder: str,
    variable: str,
    write: Any,
    classes: int,
    tested: int,
    final_run: bool,
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    write(tmp_path / folder, classes)
    # Two iterations; in the final run beyond the tenth epoch, where the choice would validate.
    epochs, batch = (11, 8) if final_run else (1, 2)
    cfg = load(name, f'train_cfg.max_epochs={epochs}', final_run=final_run)
    runner = build_runner(reduce(cfg, tmp_path, batch))
    evaluated = []
    evaluate = runner.val_loop.run
    monkeypatch.setattr(
        runner.val_loop, 'run', lambda: (evaluated.append(runner.epoch), evaluate())
    )
    runner.train()
    assert runner.iter == (11 if final_run else 2) and evaluated == [epochs]
    sizes = [len(runner.train_dataloader.dataset), len(runner.val_dataloader.dataset)]
    assert sizes == ([8, tested] if final_run else [4, 4])
    assert 0 <= runner.message_hub.get_scalar('val/accuracy/top1').current() <= 100
    plan = json.loads((tmp_path / 'run/cdra_plan.json').read_text())
    assert plan and (tmp_path / 'run/summary.json').is_file()
    trained = {n for n, p in runner.model.named_parameters() if p.requires_grad}
    assert any('.up' in n for n in trained) and 'head.fc.weight' in trained
    base = torch.load(tmp_path / 'base.pth')['state_dict']['patch_embed.projection.weight']
    assert torch.equal(runner.model.backbone.patch_embed.projection.weight, base)


@pytest.mark.shared
@pytest.mark.parametrize(
    ('name', 'tested', 'pixels'),
    [
        ('deit_tiny_caltech101', 1020, 224),
        ('deit_tiny_cifar10', 3000, 224),
        ('vit_tiny32_cifar10', 3000, 32),
    ],
)
def test_config_reads_the_real_lists(
    monkeypatch: pytest.MonkeyPatch, shared: Path, name: str, tested: int, pixels: int
) -> None:
    monkeypatch.setenv('CDRA_VTAB_ROOT', str(shared / 'data/vtab-1k'))
    init_default_scope('mmpretrain')
    for final_run, sizes in ((False, [800, 200, tested]), (True, [1000, tested, tested])):
        cfg = load(f'cdra/{name}', final_run=final_run)
        sets = [DATASETS.build(cfg[loader].dataset) for loader in LOADERS]
        assert [len(data) for data in sets] == sizes
        assert {data.num_classes for data in sets} == {cfg.model.head.num_classes}
        assert all(data[0]['inputs'].shape == (3, pixels, pixels) for data in sets)


@pytest.mark.shared
@pytest.mark.parametrize(
    'name', ['deit_tiny_caltech101', 'deit_tiny_cifar10', 'vit_tiny32_cifar10']
)
def test_config_trains_on_real_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: Path, name: str
) -> None:
    monkeypatch.setenv('CDRA_VTAB_ROOT', str(shared / 'data/vtab-1k'))
    monkeypatch.setenv('CDRA_DEIT_TINY', str(shared / 'models/deit_tiny_in1k_timm.safetensors'))
    cfg = prepare_config(load(f'cdra/{name}', 'train_cfg.max_epochs=1'))
    for loader in LOADERS:
        cfg[loader].update(batch_size=2, num_workers=0, persistent_workers=False)
        cfg[loader].dataset.indices = 4
    cfg.default_hooks.cdra.num_samples = 4
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = f'{name}_{tmp_path.name}'
    runner = build_runner(cfg)
    runner.train()
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert 0 < summary['percent_of_backbone'] <= 0.49
    assert 0 <= runner.message_hub.get_scalar('val/accuracy/top1').current() <= 100
