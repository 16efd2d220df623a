"""Settings of a config that have to fit each other, whatever the images are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from cdra_mm.errors import ConfigError

from ..registry_classes import class_of
from .config_datasets import ConfiguredDataset, configured_datasets
from .label_rule import LabelRule

__all__ = ['check_settings', 'class_remarks', 'crop_of', 'padded_size']

MUCH_PADDING = 0.5


def check_settings(cfg: Config, stage: str) -> list[str]:
    """Compares the sizes that a config names.

    Args:
        cfg: The config; inside `in_scope`.
        stage: ``'train'`` or ``'test'``.

    Returns:
        What may go wrong, depending on the images; a line each.

    Raises:
        ConfigError: If something is certain to go wrong.
    """
    if cfg.model.get('data_preprocessor') is None:
        return []
    _check_sliding(cfg)
    preprocessor = cfg.model.data_preprocessor
    if stage != 'train' or not _pads_as_mmseg(preprocessor):
        return []
    size, divisor = preprocessor.get('size'), preprocessor.get('size_divisor')
    if (size is None) == (divisor is None):
        given = 'neither' if size is None else f'size={size} and size_divisor={divisor}'
        raise ConfigError(
            f'model.data_preprocessor needs size (height, width) or size_divisor, and has {given}: '
            'give one of them, size the crop_size of the training pipeline'
        )
    if size is None:
        return []
    if not _is_size(size):
        raise ConfigError(
            f'model.data_preprocessor.size={size!r}: expected (height, width) in pixels'
        )
    remarks = []
    for configured in configured_datasets(cfg, ('train_dataloader',)):
        remarks += _crop_remarks(
            configured, tuple(size), (cfg.train_dataloader.get('batch_size') or 1)
        )
    return remarks


def class_remarks(
    configured: ConfiguredDataset, classes: Sequence[str] | None, rule: LabelRule | None
) -> list[str]:
    """Whether a data set names as many classes as the head has."""
    if rule is None or classes is None or not len(classes):
        return []
    binary = {rule.num_classes, rule.limit}  # a head with one class tells two apart
    if len(classes) in binary:
        return []
    return [
        f'{configured.where} names {len(classes)} classes and the head has num_classes='
        f'{rule.num_classes}: set the number of classes of the head to {len(classes)}, or mend '
        'metainfo.classes'
    ]


def padded_size(cfg: Config) -> tuple[int, int] | None:
    """The (height, width) that smaller training images are padded to; None where there is none."""
    preprocessor = cfg.model.get('data_preprocessor')
    if preprocessor is None or not _pads_as_mmseg(preprocessor):
        return None
    size = preprocessor.get('size')
    return tuple(size) if _is_size(size) else None


def crop_of(configured: ConfiguredDataset) -> tuple[int, int] | None:
    """The (height, width) of the largest images that a pipeline gives, where it crops."""
    crop: tuple[int, int] | None = None
    for step in configured.config.get('pipeline') or ():
        if not isinstance(step, Mapping):
            continue
        if _is_size(step.get('crop_size')):
            crop = tuple(step['crop_size'])
        elif crop and _is_size(step.get('size')):
            crop = (max(crop[0], step['size'][0]), max(crop[1], step['size'][1]))  # padding
    return crop


def _check_sliding(cfg: Config) -> None:
    test = cfg.model.get('test_cfg') or {}
    if test.get('mode') != 'slide':
        return
    lacking = [key for key in ('crop_size', 'stride') if not _is_size(test.get(key))]
    if lacking:
        raise ConfigError(
            f"model.test_cfg.mode='slide' needs {' and '.join(lacking)}, (height, width): "
            'the first validation would end in an error'
        )


def _pads_as_mmseg(preprocessor: Mapping[str, Any]) -> bool:
    from mmseg.models import SegDataPreProcessor

    cls = class_of(MODELS, preprocessor.get('type'))
    return cls is not None and issubclass(cls, SegDataPreProcessor)


def _crop_remarks(
    configured: ConfiguredDataset, size: tuple[int, int], batch_size: int
) -> list[str]:
    """What a crop of another size than the padding leads to."""
    crop = crop_of(configured)
    if crop is None:
        return []
    if batch_size > 1 and (crop[0] > size[0] or crop[1] > size[1]):
        return [
            f'the pipeline of {configured.where} crops {crop[0]} x {crop[1]} (height x width) and '
            f'model.data_preprocessor.size={size} pads to less: an image smaller than the crop '
            f'will not fit into a batch with others; set model.data_preprocessor.size={crop}'
        ]
    empty = 1 - min(crop[0], size[0]) * min(crop[1], size[1]) / (size[0] * size[1])
    if empty > MUCH_PADDING:
        return [
            f'the pipeline of {configured.where} crops {crop[0]} x {crop[1]} and '
            f'model.data_preprocessor.size={size} pads that, so that {100 * empty:.0f} % are '
            f'empty; set model.data_preprocessor.size={crop}, or a larger crop_size'
        ]
    return []


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(entry, int) and entry > 0 for entry in value)
    )
