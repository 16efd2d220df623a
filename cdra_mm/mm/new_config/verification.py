"""A new config is tried before it is handed over."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from cdra_mm.core import ConfigError, DataError

from ..inputs import check_inputs
from ..launch import load_config, prepare_config

__all__ = ['verify_config']


def verify_config(path: Path, counts: dict[str, int]) -> Config:
    """Reads a config, builds what it says and runs an image through it.

    Nothing is downloaded: the model is built without its weights.

    Args:
        path: The config.
        counts: How many pairs each split has to have.

    Returns:
        The config, ready for a runner.

    Raises:
        CDRAError: If a loader does not give the pairs, or the model does not take an image.
    """
    cfg = prepare_config(load_config(path))
    check_inputs(cfg, 'train')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for split, count in counts.items():
            _try_loader(cfg, split, count)
        _try_model(cfg)
    return cfg


def _try_loader(cfg: Config, split: str, count: int) -> None:
    dataset = DATASETS.build(copy.deepcopy(cfg[f'{split}_dataloader'].dataset))
    if len(dataset) != count:
        raise DataError(
            f'the {split} loader of the config finds {len(dataset)} pairs, and {count} were found '
            'before: have files changed since?'
        )
    classes = len(dataset.metainfo['classes'])
    for index in (0, count - 1):
        sample = dataset[index]['data_samples']
        ids: Any = sample.gt_sem_seg.data.unique().tolist()
        foreign = [i for i in ids if not 0 <= i < classes and i != cfg.ignore_index]
        if foreign:
            raise DataError(
                f'{sample.seg_map_path} gives the label {foreign[0]} when it is loaded: expected '
                f'0 to {classes - 1} or {cfg.ignore_index}'
            )


def _try_model(cfg: Config) -> None:
    model = MODELS.build(copy.deepcopy(cfg.model)).eval()
    size = cfg.crop_size
    with torch.no_grad():
        scores = model(torch.zeros(1, 3, *size), mode='tensor')
    if scores.shape[1] != len(cfg.metainfo['classes']):
        raise ConfigError(f'the model gives {scores.shape[1]} scores a pixel')
