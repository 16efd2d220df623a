"""Test-time augmentation: the predictions of several views of an image, averaged."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from cdra_mm.errors import ConfigError

from .dataset_configs import dataset_configs

__all__ = ['set_test_time_augmentation']

# What averages the views, by the package of the model.
AVERAGES = {'mmseg': 'mmseg.SegTTAModel', 'mmpretrain': 'mmpretrain.AverageClsScoreTTA'}
# What a segmentor needs to know of a view to turn its prediction back.
FLIP_KEYS = ('flip', 'flip_direction')


def set_test_time_augmentation(cfg: Config) -> None:
    """Wraps the model for test-time augmentation and gives the test data its views.

    A config says both in ``tta_model`` and ``tta_pipeline``, as those of OpenMMLab do. Where it
    does not, the views are an image and its mirror image, and the scores of both are averaged.

    Raises:
        ConfigError: If it has no test data with a pipeline, or the package is unknown and the
            config does not say how.
    """
    found = dataset_configs((cfg.get('test_dataloader') or {}).get('dataset'), '')
    datasets = [dataset for _, dataset in found if dataset.get('pipeline')]
    if not datasets or cfg.get('model') is None:
        raise ConfigError(
            '--tta changes the pipeline of test_dataloader.dataset, and the config has none: '
            'leave it out, or give the config test data'
        )
    average = cfg.get('tta_model') or {'type': AVERAGES.get(str(cfg.get('default_scope')))}
    if not isinstance(average, Mapping) or not average.get('type'):
        raise ConfigError(
            f'--tta knows how to average predictions of {" and ".join(AVERAGES)}, not of '
            f'{cfg.get("default_scope")}: give the config a tta_model and a tta_pipeline'
        )
    for dataset in datasets:
        dataset['pipeline'] = cfg.get('tta_pipeline') or _mirrored(dataset['pipeline'])
    cfg.model = {**average, 'module': cfg.model}


def _mirrored(pipeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A pipeline that ends in two views: the image, then its mirror image.

    In this order: of a segmentor's views the first gives the labels that are compared.
    """
    *steps, pack = copy.deepcopy(list(pipeline))
    if pack.get('meta_keys'):
        pack['meta_keys'] = tuple(dict.fromkeys((*pack['meta_keys'], *FLIP_KEYS)))
    flips = [{'type': 'RandomFlip', 'prob': prob, 'direction': 'horizontal'} for prob in (0.0, 1.0)]
    return [*steps, {'type': 'TestTimeAug', 'transforms': [flips, [pack]]}]
