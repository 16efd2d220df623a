"""What is looked at before every run: files, settings, and the first few samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from torch import Tensor

from cdra_mm.errors import DataError
from cdra_mm.spelling import first_of

from ..dataset_configs import LOADERS
from ..planning.scoring_state import preserved_random_state
from .config_datasets import ConfiguredDataset, build, check_command, configured_datasets, in_scope
from .dataset_files import absent_files, folders_read_twice, infos_of, is_local, unpaired_masks
from .label_rule import LabelRule, label_rule, last_head
from .likely_mistakes import likely_mistakes
from .one_sample import load, wrong_ids
from .size_settings import check_settings, class_remarks, crop_of, padded_size
from .watch import WatchedPipeline, require_one_size

__all__ = ['check_data']

FEW = 4  # samples of each data set that are read
SIZED = 12  # training samples whose sizes are compared, where the settings let them differ
CLASSES_BELOW = 1_000_000  # samples up to which every label of a classifier is compared


def check_data(cfg: Config, stage: str) -> list[str]:
    """Looks at the data of a run before it begins: all names, and a few samples.

    Args:
        cfg: The config, after `check_inputs`.
        stage: ``'train'`` or ``'test'``.

    Returns:
        Warnings, a line each, for the log of the run.

    Raises:
        DataError: If a listed file is missing or empty, or one of the first samples cannot be used.
        ConfigError: If settings do not fit each other or the data.
    """
    advice = f'; look at all files with: {check_command(cfg)}'
    with in_scope(cfg), preserved_random_state():
        head = last_head(cfg.model)
        rule = label_rule(head) if isinstance(head, Mapping) else None
        remarks = check_settings(cfg, stage)
        first: list[str] | None = None
        for configured in configured_datasets(cfg, LOADERS[stage]):
            dataset = build(configured, advice)
            classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
            remarks += class_remarks(configured, classes, rule)
            first = list(classes) if first is None and classes else first
            if first and classes and list(classes) != first:
                differ = sorted({*map(str, classes)} ^ {*map(str, first)}) or ['their order']
                remarks.append(
                    f'{configured.where} has other classes than the training data '
                    f'({", ".join(differ[:5])}): the same id means another class'
                )
            remarks += _check(configured, dataset, rule, advice)
            size = padded_size(cfg)
            if configured.split == 'train' and size and _may_differ(cfg, configured, size):
                _check_sizes(dataset, size)
    found = list(dict.fromkeys(remarks))
    return [*found, f'look at all files with: {check_command(cfg)}'] if found else []


def _check(
    configured: ConfiguredDataset, dataset: Any, rule: LabelRule | None, advice: str
) -> list[str]:
    infos = infos_of(dataset)
    remarks = []
    if is_local(dataset):
        absent = absent_files(dataset, infos)
        if absent:
            raise DataError(f'{configured.where}: {first_of(absent)}{advice}')
        lonely = unpaired_masks(dataset, infos)
        if lonely:
            remarks.append(f'{configured.where}: {first_of(lonely)} has no image and is not used')
        for name, other in folders_read_twice(infos):
            remarks.append(f'{configured.where}: {name} is the same folder as {other}: read twice')
    _check_labels(configured, infos, rule, advice)
    steps: Any = getattr(dataset, 'pipeline', None)
    if infos and type(steps) is Compose and steps.transforms:
        remarks += _check_samples(configured, dataset, infos, rule, advice)
    return remarks


def _may_differ(cfg: Config, configured: ConfiguredDataset, size: tuple[int, int]) -> bool:
    crop = crop_of(configured)
    if (cfg.train_dataloader.get('batch_size') or 1) == 1:
        return False
    return crop is None or crop[0] > size[0] or crop[1] > size[1]


def _check_sizes(dataset: Any, size: tuple[int, int]) -> None:
    """Whether some samples come out of the pipeline so that they fit into one batch."""
    if not len(dataset):
        return
    packed = [dataset[round(n)] for n in np.linspace(0, len(dataset) - 1, SIZED)]
    packed = [sample for sample in packed if isinstance(sample, Mapping)]
    if packed and all(isinstance(sample.get('inputs'), Tensor) for sample in packed):
        samples = [sample.get('data_samples') for sample in packed]
        require_one_size(size, [sample['inputs'] for sample in packed], samples)


def _check_labels(
    configured: ConfiguredDataset,
    infos: Sequence[Mapping[str, Any]],
    rule: LabelRule | None,
    advice: str,
) -> None:
    """The labels of a classifier, which are known without reading an image."""
    if rule is None or len(infos) > CLASSES_BELOW:
        return
    for info in infos:
        label = info.get('gt_label')
        if isinstance(label, int | np.integer) and (trouble := wrong_ids([int(label)], rule)):
            raise DataError(
                f'{configured.where}: {info.get("img_path", "a sample")} {trouble}; mend the '
                f'labels or num_classes{advice}'
            )


def _check_samples(
    configured: ConfiguredDataset,
    dataset: Any,
    infos: Sequence[Mapping[str, Any]],
    rule: LabelRule | None,
    advice: str,
) -> list[str]:
    """Reads a few samples, spread over the data set, through the whole pipeline."""
    training = configured.split == 'train'
    where = f'{configured.split} data'
    pipeline = WatchedPipeline(dataset.pipeline, where, advice, rule if training else None)
    chosen = sorted({round(n) for n in np.linspace(0, len(infos) - 1, FEW)})
    counts: dict[int, int] = {}
    foreign: list[str] = []
    for index in chosen:
        if pipeline(dataset.get_data_info(index)) is None and dataset.test_mode:
            raise DataError(f'{where}: the pipeline gives nothing for sample {index}{advice}')
        data = load(dataset.get_data_info(index), dataset.pipeline.transforms) or {}
        labels = data.get('gt_seg_map')
        if labels is None or labels.dtype.kind not in 'iu':
            continue
        ids, pixels = np.unique(labels, return_counts=True)
        if rule is not None and not training and (trouble := wrong_ids(ids.tolist(), rule)):
            foreign.append(
                f'{configured.where}: {data["seg_map_path"]} {trouble}; the score leaves it out'
            )
        for number, count in zip(ids.tolist(), pixels.tolist(), strict=True):
            counts[number] = counts.get(number, 0) + count
    if rule is None or not training:
        return foreign
    what = f'the label maps of {len(chosen)} training samples'
    reduces = bool(getattr(dataset, 'reduce_zero_label', False))
    found = likely_mistakes(counts, rule, what=what, reduces_zero=reduces, is_whole=False)
    return found if len(counts) > 1 or len(infos) <= len(chosen) else []
