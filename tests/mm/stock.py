"""Configs of the installed OpenMMLab packages, reduced until a CPU finishes them in seconds.

A reduction makes sizes, data and schedule small: widths, image size, number of blocks, steps. The
kinds of model, head, loss, pipeline, sampler, optimizer and hook stay the config's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

from . import toy

ONE_LINE = {'default_hooks.cdra.type': 'cdra_mm.CDRAHook'}
WIDTH, SIZE = 32, 64


@dataclass(frozen=True)
class Stock:
    """A config of an installed package and how it is made small.

    Attributes:
        package: Import name of the package.
        path: Config file under its ``.mim/configs``.
        reduce: New values by dotted key.
        base: Dotted key that takes the path of a pretrained file; '' where the config trains from
            random weights.
        prefix: Of the backbone's names in that file.
        roles: Of these roles at least one is adapted: what is special about the family.
    """

    package: str
    path: str
    reduce: Mapping[str, Any] = field(default_factory=dict)
    base: str = ''
    prefix: str = ''
    roles: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.path.removesuffix('.py')

    def load(self) -> Config:
        """The config as it is installed."""
        (location,) = find_spec(self.package).submodule_search_locations
        return Config.fromfile(Path(location, '.mim/configs', self.path))

    def reduced(self, folder: Path) -> Config:
        """The config with the one line, small, on the data and base file in a folder."""
        cfg = self.load()
        cfg.merge_from_dict({**ONE_LINE, **self.reduce})
        if self.base:
            cfg.merge_from_dict({self.base: str(folder / 'base.pth')})
        # The published schedules warm up for longer than this run lasts.
        cfg.param_scheduler = [dict(type='ConstantLR', factor=0.5, begin=0, end=2, by_epoch=False)]
        cfg.merge_from_dict(
            {
                'default_hooks.cdra.num_samples': 4,
                'default_hooks.cdra.budget_percent': 5.0,
                'optim_wrapper.optimizer.lr': 1e-2,
                'randomness': dict(seed=3),
                'log_level': 'ERROR',
            }
        )
        {'mmseg': _reduce_ade, 'mmpretrain': _reduce_imagenet}[self.package](cfg, folder)
        for name in _loaders(cfg):
            cfg[name].update(num_workers=0, persistent_workers=False)
        return cfg

    def write_base(self, folder: Path) -> None:
        """The pretrained file that the config asks for, with random weights."""
        if not self.base:
            return
        own = self.load()
        own.merge_from_dict(dict(self.reduce))
        own.model.backbone.pop('init_cfg', None)
        with DefaultScope.overwrite_default_scope(self.package):
            backbone = MODELS.build(own.model.backbone)
        backbone.init_weights()
        with torch.no_grad():
            for parameter in backbone.parameters():  # so that no bias is zero
                parameter += 0.05 * torch.randn_like(parameter)
        state = {self.prefix + name: tensor for name, tensor in backbone.state_dict().items()}
        torch.save({'state_dict': state}, folder / 'base.pth')


def runner_of(cfg: Config, work_dir: Path, **changes: Any) -> Runner:
    """A runner of a copy of the config, with changes, under a name of its own."""
    cfg = Config(cfg.to_dict())
    cfg.merge_from_dict({'work_dir': str(work_dir), 'experiment_name': str(work_dir), **changes})
    return Runner.from_cfg(cfg)


def write_data(package: str, folder: Path) -> None:
    """Four training and two validation images in the layout that the data set class reads."""
    {'mmseg': _write_ade, 'mmpretrain': _write_imagenet}[package](folder)


def _write_ade(folder: Path) -> None:
    for split, count in (('training', 4), ('validation', 2)):
        for kind in ('images', 'annotations'):
            (folder / 'ade' / kind / split).mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng(i)
            image = rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f'ade/images/{split}/{i}.jpg')
            mask = np.kron(rng.integers(0, 151, (8, 10)), np.ones((8, 8))).astype(np.uint8)
            Image.fromarray(mask).save(folder / f'ade/annotations/{split}/{i}.png')


def _write_imagenet(folder: Path) -> None:
    lines = []
    for label, name in enumerate(('n01440764', 'n01443537')):
        (folder / 'imagenet/train' / name).mkdir(parents=True)
        for i in range(2):
            image = Image.fromarray(toy.picture(i)[0]).resize((SIZE, SIZE))
            image.save(folder / 'imagenet/train' / name / f'{i}.JPEG')
            lines.append(f'{name}/{i}.JPEG {label}')
    (folder / 'imagenet/list.txt').write_text('\n'.join(lines))


def _loaders(cfg: Config) -> list[str]:
    return [
        f'{stage}_dataloader' for stage in ('train', 'val', 'test') if f'{stage}_dataloader' in cfg
    ]


def _reduce_ade(cfg: Config, folder: Path) -> None:
    cfg.merge_from_dict(
        {
            'model.data_preprocessor.size': (SIZE, SIZE),
            'train_cfg.max_iters': 4,
            'train_cfg.val_interval': 4,
            'default_hooks.checkpoint.interval': 2,
            'train_dataloader.batch_size': 2,  # UPerNet's batch norm needs two values
        }
    )
    if cfg.model.test_cfg.mode == 'slide':
        cfg.model.test_cfg.update(crop_size=(SIZE, SIZE), stride=(SIZE // 2, SIZE // 2))
    for name in _loaders(cfg):
        cfg[name].dataset.data_root = str(folder / 'ade')
        for step in cfg[name].dataset.pipeline:
            if 'crop_size' in step:
                step.crop_size = (SIZE, SIZE)
            if 'scale' in step:
                step.scale = (2 * SIZE, SIZE)


def _reduce_imagenet(cfg: Config, folder: Path) -> None:
    cfg.merge_from_dict({'train_cfg.max_epochs': 2, 'default_hooks.checkpoint.interval': 1})
    backbone = cfg.model.backbone
    side = backbone.get('module', backbone).get('img_size', toy.SIZE)
    for name in _loaders(cfg):
        cfg[name].batch_size = 2
        cfg[name].dataset.update(
            data_root=str(folder / 'imagenet'), split='', data_prefix='train', ann_file='list.txt'
        )
        for step in _steps(cfg[name].dataset.pipeline):
            for key in ('scale', 'crop_size'):
                if key in step:
                    step[key] = side


def _steps(pipeline: Any) -> Iterator[Any]:
    for step in pipeline:
        yield step
        yield from _steps(step.get('transforms', []))
