"""Pipelines and batches of data sets, wrapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.dataset import Compose
from torch.utils.data import DataLoader

__all__ = ['wrap_batches', 'wrap_pipeline']


def wrap_pipeline(dataset: Any, wrap: Callable[[Compose], Any]) -> None:
    """Wraps the pipeline of a data set, where it is mmengine's own and not wrapped yet."""
    if type(getattr(dataset, 'pipeline', None)) is Compose:
        dataset.pipeline = wrap(dataset.pipeline)


def wrap_batches(loader: DataLoader[Any], wrap: Callable[[Any], Any]) -> None:
    """Wraps what makes a batch of samples."""
    loader.collate_fn = wrap(loader.collate_fn)
