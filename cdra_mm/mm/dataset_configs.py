"""The data sets that a config names, as configs: in which loaders, and inside which wrappers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ['LOADERS', 'SPLITS', 'dataset_configs', 'is_wrapper']

SPLITS = {'train_dataloader': 'train', 'val_dataloader': 'val', 'test_dataloader': 'test'}
# What is read at each stage.
LOADERS = {'train': ('train_dataloader', 'val_dataloader'), 'test': ('test_dataloader',)}
# Where loaders and wrappers of data sets (RepeatDataset, ConcatDataset) hold them.
INNER = ('dataset', 'datasets')


def dataset_configs(config: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every config in that of a loader or data set, itself first, wrappers before what they hold.

    Args:
        config: Of a loader or a data set, or a list of data sets; None has none.
        where: The setting that it stands in.

    Yields:
        The setting of each (``train_dataloader.dataset.datasets.0``), and its config.
    """
    if isinstance(config, Mapping):
        yield where, config  # type: ignore[misc]
        for key in INNER:
            yield from dataset_configs(config.get(key), f'{where}.{key}')
    elif isinstance(config, list | tuple):
        for position, entry in enumerate(config):
            yield from dataset_configs(entry, f'{where}.{position}')


def is_wrapper(config: Mapping[str, Any]) -> bool:
    """Whether a config holds other data sets, and has no files of its own."""
    return any(config.get(key) for key in INNER)
