"""A failure of the data names the file, wherever in a run it happens.

mmengine's data loaders hand on what a transform raises: which sample it was stays unknown, in a
worker process all the more. The pipeline of each data set is therefore replaced by one that does
the same and knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from cdra_mm.errors import CDRAError, ConfigError, DataError

from ..host.data_wrapping import wrap_batches, wrap_pipeline
from ..host.runner_parts import built_loops
from .config_datasets import check_command
from .label_rule import LabelRule, label_rule, last_head
from .one_sample import files_of, mask_fault, packed_ids, reason, step_name, wrong_ids

__all__ = ['WatchDataHook', 'WatchedPipeline', 'leaf_datasets', 'require_one_size', 'watch']


class WatchedPipeline(Compose):
    """A pipeline whose failures name the files of the sample.

    Args:
        pipeline: The pipeline.
        where: What the data are for, for the message.
        advice: Ends every message.
        rule: What the labels have to be, where they go into a loss.
    """

    def __init__(
        self, pipeline: Compose, where: str, advice: str, rule: LabelRule | None = None
    ) -> None:
        self.transforms = pipeline.transforms
        self.where, self.advice, self.rule = where, advice, rule

    def __call__(self, data: Any) -> Any:
        """Runs the steps; what they raise becomes a DataError that names the sample."""
        files = files_of(data) if isinstance(data, Mapping) else []
        is_checked = False
        for step in self.transforms:
            try:
                data = step(data)
            except CDRAError:
                raise
            except Exception as error:
                raise DataError(
                    f'{self.where}: {_named(files)} cannot be used, {step_name(step)} fails '
                    f'({reason(error)}){self.advice}'
                ) from error
            if data is None:
                return None
            if not is_checked and isinstance(data, Mapping) and 'gt_seg_map' in data:
                is_checked = True
                self._require(mask_fault(data), str(data.get('seg_map_path') or _named(files)))
        if self.rule is not None:
            self._require(
                wrong_ids(packed_ids(data), self.rule),
                _named(files[::-1]),
                '; mend the labels, num_classes or reduce_zero_label',
            )
        return data

    def _require(self, trouble: str, name: str, remedy: str = '') -> None:
        if trouble:
            raise DataError(f'{self.where}: {name} {trouble}{remedy}{self.advice}')


class WatchedCollate:
    """A collate function that says which samples of a batch do not fit together."""

    def __init__(self, collate: Callable[[Any], Any], where: str, advice: str) -> None:
        self.collate, self.where, self.advice = collate, where, advice

    def __call__(self, batch: Sequence[Any]) -> Any:
        try:
            return self.collate(batch)
        except CDRAError:
            raise
        except Exception as error:
            inputs = [entry.get('inputs') for entry in batch if isinstance(entry, Mapping)]
            samples = [entry.get('data_samples') for entry in batch if isinstance(entry, Mapping)]
            unequal = _unequal(inputs, samples)
            if not unequal:
                raise
            raise DataError(
                f'{self.where}: {unequal} and cannot be one batch: crop or resize them to one size '
                f'in the pipeline, or set batch_size=1{self.advice}'
            ) from error


class WatchDataHook(Hook):
    """Watches the data of a run, with or without CDRAHook."""

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """The loops and their data sets are built by now, and nothing is read yet."""
        watch(runner)


def watch(runner: Runner) -> None:
    """Lets every built loader of a run name its samples when they cannot be used; once."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    rule = label_rule(last_head(model))
    advice = f'; look at all files with: {check_command(runner.cfg)}'
    for split, loop in built_loops(runner):
        loader = getattr(loop, 'dataloader', None)
        if not isinstance(loader, DataLoader):
            continue
        where = f'{split} data'
        for dataset in leaf_datasets(loader.dataset):
            labels = rule if split == 'train' else None
            watched = partial(WatchedPipeline, where=where, advice=advice, rule=labels)
            wrap_pipeline(dataset, watched)
        if not isinstance(loader.collate_fn, WatchedCollate):
            wrap_batches(loader, partial(WatchedCollate, where=where, advice=advice))
    preprocessor = getattr(model, 'data_preprocessor', None)
    if isinstance(preprocessor, nn.Module) and not any(
        hook is _require_one_size for hook in preprocessor._forward_pre_hooks.values()
    ):
        preprocessor.register_forward_pre_hook(_require_one_size, with_kwargs=True)


def leaf_datasets(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers."""
    inner = getattr(dataset, 'datasets', None) or getattr(dataset, 'dataset', None)
    if inner is None:
        yield dataset
        return
    for entry in inner if isinstance(inner, list | tuple) else [inner]:
        yield from leaf_datasets(entry)


def _require_one_size(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Before a preprocessor stacks images: with its padding they must have one size."""
    data: Any = args[0] if args else kwargs.get('data')
    training = args[1] if len(args) > 1 else kwargs.get('training', False)
    inputs = data.get('inputs') if isinstance(data, Mapping) else None
    # `size` and `size_divisor` are those of mmseg; others pad to the largest image of the batch.
    if not hasattr(module, 'size_divisor') or not isinstance(inputs, list | tuple):
        return
    samples = data.get('data_samples') or []
    if training and module.size_divisor is None and module.size is not None:
        require_one_size(tuple(module.size), inputs, samples)
    if not training and len({tuple(x.shape[-2:]) for x in inputs}) > 1:
        raise ConfigError(
            f'{_unequal(inputs, samples)} and cannot be one batch: set batch_size=1 in '
            'val_dataloader and test_dataloader, or resize them to one size'
        )


def require_one_size(size: tuple[int, int], inputs: Sequence[Any], samples: Sequence[Any]) -> None:
    """Images of a batch, padded to at least this size, must have one size.

    Args:
        size: Height and width that smaller images are padded to.
        inputs: Images, each ``[C, H, W]``.
        samples: Their data samples, which name them.

    Raises:
        ConfigError: If two differ.
    """
    padded = [(max(x.shape[-2], size[0]), max(x.shape[-1], size[1])) for x in inputs]
    if len(set(padded)) > 1:
        largest = tuple(map(max, zip(*padded, strict=True)))
        raise ConfigError(
            f'{_unequal(inputs, samples)} and cannot be one batch: '
            f'model.data_preprocessor.size={size} pads smaller images to {size[0]} x {size[1]}, '
            f'and the pipeline gives larger ones; set model.data_preprocessor.size={largest} (the '
            f'crop_size of the pipeline), or the crop_size to {size}'
        )


def _unequal(inputs: Sequence[Any], samples: Sequence[Any]) -> str:
    """Two images of a batch that differ in their size, in words; '' if there are none."""
    sizes = [tuple(x.shape[-2:]) for x in inputs if isinstance(x, torch.Tensor)]
    for n, size in enumerate(sizes):
        if size != sizes[0]:
            return (
                f'{_image(samples, 0)} gives {sizes[0][0]} x {sizes[0][1]} (height x width), '
                f'{_image(samples, n)} {size[0]} x {size[1]}'
            )
    return ''


def _image(samples: Sequence[Any], n: int) -> str:
    sample = samples[n] if n < len(samples) else None
    return str(getattr(sample, 'img_path', f'image {n}'))


def _named(files: Sequence[str]) -> str:
    """The first file, with the others it belongs to."""
    if not files:
        return 'a sample'
    return files[0] + (f' (with {", ".join(files[1:])})' if len(files) > 1 else '')
