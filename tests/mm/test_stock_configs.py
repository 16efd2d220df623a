"""Configs of the installed mmseg and mmpretrain packages, with nothing but the one line.

Sizes are reduced so that a CPU finishes; the structure is the config's own.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from cdra_mm.core import Plan, adapters

from . import toy

ONE_LINE = {'default_hooks.cdra.type': 'cdra_mm.CDRAHook'}


def stock(package: str, path: str) -> Config:
    (location,) = find_spec(package).submodule_search_locations
    return Config.fromfile(Path(location, '.mim/configs', path))


def finish(cfg: Config, folder: Path, load_from: str | None = None) -> Runner:
    cfg.work_dir, cfg.log_level, cfg.load_from = str(folder), 'WARNING', load_from
    cfg.experiment_name = f'stock_{np.random.randint(1 << 30)}'
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.num_workers, loader.persistent_workers = 0, False
    return Runner.from_cfg(cfg)


def check_training(runner: Runner, folder: Path) -> set[str]:
    """What was trained; returns the roles of the adapted matrices."""
    plan = Plan.from_json((folder / 'cdra_plan.json').read_text())
    backbone = runner.model.backbone
    assert plan.blocks
    assert plan.num_trainable == sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    for name, adapter in adapters(backbone).items():
        assert any(bool(p.any()) for n, p in adapter.named_parameters() if n != 'down')
        assert name in {b.name for b in plan.blocks} | {v.name for v in plan.vectors}
    return {b.name.rpartition(':')[2] for b in plan.blocks}


def test_mmseg_vit_upernet_ade20k(tmp_path):
    """mmseg's own ViT: nn.MultiheadAttention, whose weights are used without a module call."""
    root = tmp_path / 'ade'
    for split, count in (('training', 4), ('validation', 2)):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng(i)
            image = rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / f'images/{split}/{i}.jpg')
            mask = np.kron(rng.integers(0, 151, (8, 10)), np.ones((8, 8))).astype(np.uint8)
            Image.fromarray(mask).save(root / f'annotations/{split}/{i}.png')

    def config() -> Config:
        cfg = stock('mmseg', 'vit/vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py')
        small = dict(img_size=(64, 64), embed_dims=32, num_heads=2, num_layers=12)
        cfg.merge_from_dict(
            {
                **ONE_LINE,
                **{f'model.backbone.{key}': value for key, value in small.items()},
                'model.pretrained': str(tmp_path / 'base.pth'),
                'model.data_preprocessor.size': (64, 64),
                'model.decode_head.in_channels': [32] * 4,
                'model.decode_head.channels': 16,
                'model.auxiliary_head.in_channels': 32,
                'model.auxiliary_head.channels': 16,
                'model.test_cfg': dict(mode='whole', _delete_=True),
                'default_hooks.cdra.num_samples': 4,
                'default_hooks.cdra.budget_percent': 5.0,
                'train_cfg.max_iters': 2,
                'train_cfg.val_interval': 2,
                'default_hooks.checkpoint.interval': 2,
            }
        )
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset.data_root = str(root)
        for step in cfg.train_dataloader.dataset.pipeline:
            if 'crop_size' in step:
                step.crop_size = (64, 64)
            if step.type == 'RandomResize':
                step.scale = (128, 64)
        return cfg

    torch.manual_seed(0)
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope('mmseg'):
        first = dict(config().model.backbone)
        backbone = MODELS.build(first)
    backbone.init_weights()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    torch.save(backbone.state_dict(), tmp_path / 'base.pth')

    runner = finish(config(), tmp_path / 'run')
    runner.train()
    roles = check_training(runner, tmp_path / 'run')
    assert roles & {'q', 'k', 'v'}
    stored = torch.load(tmp_path / 'run/iter_2.pth', weights_only=False)['state_dict']
    assert 'backbone.layers.0.attn.attn.in_proj_weight' not in stored

    tested = finish(config(), tmp_path / 'tested', str(tmp_path / 'run/iter_2.pth'))
    tested.test()
    ours, theirs = tested.model.state_dict(), runner.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_mmpretrain_deit_imagenet(tmp_path):
    """mixup, cutmix, label smoothing, repeated augmentation, a head that starts at zero."""
    root = tmp_path / 'imagenet'
    lines = []
    for label, name in enumerate(('n01440764', 'n01443537')):
        (root / 'train' / name).mkdir(parents=True)
        for i in range(3):
            image = Image.fromarray(toy.picture(i)[0]).resize((64, 64))
            image.save(root / 'train' / name / f'{i}.JPEG')
            lines.append(f'{name}/{i}.JPEG {label}')
    (root / 'list.txt').write_text('\n'.join(lines))

    def config() -> Config:
        cfg = stock('mmpretrain', 'deit/deit-tiny_4xb256_in1k.py')
        cfg.merge_from_dict(
            {
                **ONE_LINE,
                'model.backbone.img_size': 32,
                'model.head.in_channels': 32,
                'default_hooks.cdra.num_samples': 4,
                'default_hooks.cdra.budget_percent': 5.0,
                'train_cfg.max_epochs': 1,
                'train_dataloader.batch_size': 2,
                'val_dataloader.batch_size': 2,
                'test_dataloader.batch_size': 2,
            }
        )
        cfg.model.backbone.arch = toy.ARCH
        cfg.param_scheduler = cfg.param_scheduler[:1]  # the others begin after one epoch
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset.data_root = str(root)
            loader.dataset.split = ''
            loader.dataset.data_prefix = 'train'
            loader.dataset.ann_file = 'list.txt'
            for step in loader.dataset.pipeline:
                if step.type in ('RandomResizedCrop', 'CenterCrop'):
                    step['scale' if step.type == 'RandomResizedCrop' else 'crop_size'] = 32
        return cfg

    runner = finish(config(), tmp_path / 'run')
    runner.train()
    check_training(runner, tmp_path / 'run')
    tested = finish(config(), tmp_path / 'tested', str(tmp_path / 'run/epoch_1.pth'))
    tested.test()
    ours, theirs = tested.model.state_dict(), runner.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(1)
