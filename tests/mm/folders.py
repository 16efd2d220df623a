"""The toy data as files, and runs on them: what APIs need that read images from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from PIL import Image

from . import toy

READ = dict(type='LoadImageFromFile')
PIPELINES = {
    'seg': [READ, dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
    'cls': [READ, dict(type='PackInputs')],
}


def write_data(folder: Path, count: int = 8) -> Path:
    """Images and label maps; of a class each the images lie in folders of their own, too."""
    for index in range(count):
        pixels, mask = toy.picture(index)
        name = 'abcd'[index % toy.CLASSES]
        for path, content in (
            (folder / f'images/{index}.png', pixels),
            (folder / f'masks/{index}.png', mask),
            (folder / f'classes/{name}/{index}.png', pixels),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    return folder


def config(folder: Path, task: str = 'seg', **options: Any) -> Config:
    """A run on the files below ``data`` in the folder, which are made."""
    data = write_data(folder / 'data')
    cfg = toy.config(folder, task, **options)
    metainfo = dict(classes=tuple('abcd'))
    if task == 'seg':
        dataset: dict[str, Any] = dict(
            type='BaseSegDataset',
            img_suffix='.png',
            data_root=str(data),
            data_prefix=dict(img_path='images', seg_map_path='masks'),
            metainfo=metainfo | dict(palette=toy.ToyData.METAINFO['palette']),
        )
    else:
        dataset = dict(type='CustomDataset', data_root=str(data), data_prefix='classes')
    dataset['pipeline'] = PIPELINES[task]
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[loader].dataset = dataset
    cfg.train_cfg.max_iters = 4
    return cfg


def dumped(folder: Path) -> str:
    """The config that a run has left in its work directory."""
    return str(sorted((folder / 'run').glob('*.py'))[0])
