"""A new config is tried before it is handed over."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from cdra_mm.errors import ConfigError, DataError

from ..data_check import check_config_data
from ..inputs import check_inputs
from ..launch import load_config, prepare_config

__all__ = ['verify_config']

FEW = 64  # pairs


def verify_config(path: Path, counts: dict[str, int]) -> list[str]:
    """Reads a config, loads every pair as it says and runs an image through its model.

    Nothing is downloaded: the model is built without its weights.

    Returns:
        What can be used and looks odd, one line each.

    Raises:
        CDRAError: If a loader does not give the pairs, or the model does not take an image.
    """
    cfg = prepare_config(load_config(path))
    check_inputs(cfg, 'train')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for split, count in counts.items():
            found = len(DATASETS.build(copy.deepcopy(cfg[f'{split}_dataloader'].dataset)))
            if found != count:
                raise DataError(
                    f'the {split} loader of the config finds {found} pairs, and {count} were found '
                    'before: have files changed since?'
                )
        _try_model(cfg)
    # To start processes takes longer than to read a few files.
    report = check_config_data(cfg, workers=0 if sum(counts.values()) < FEW else None)
    if report.faults:
        raise DataError(report.problem())
    return list(report.mistakes)


def _try_model(cfg: Config) -> None:
    model = MODELS.build(copy.deepcopy(cfg.model)).eval()
    size = cfg.crop_size
    with torch.no_grad():
        scores = model(torch.zeros(1, 3, *size), mode='tensor')
    if scores.shape[1] != len(cfg.metainfo['classes']):
        raise ConfigError(f'the model gives {scores.shape[1]} scores a pixel')
