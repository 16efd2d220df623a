"""Label ids that do not fit the head are named before they crash the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.core import DataError

__all__ = ['check_labels']


def check_labels(model: nn.Module, samples: Sequence[Any]) -> None:
    """Checks the labels of a batch against the model's heads.

    Args:
        model: A segmentor or classifier.
        samples: The data samples of one batch.

    Raises:
        DataError: If labels are no integers, or an id is neither a class of the head nor ignored.
    """
    head = getattr(model, 'decode_head', None) or getattr(model, 'head', None)
    if isinstance(head, nn.ModuleList):
        head = head[-1]
    num_classes = getattr(head, 'num_classes', None)
    if not num_classes:
        return
    ignored = getattr(head, 'ignore_index', None)
    for sample in samples:
        for labels in _labels(sample):
            if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
                raise DataError(
                    f'{getattr(sample, "img_path", "a training sample")} has labels of the type '
                    f'{labels.dtype}: expected integers, one class id each; mend the labels or '
                    'the transform that loads them'
                )
            ids = labels.unique()
            wrong = [i for i in ids.tolist() if not 0 <= i < num_classes and i != ignored]
            if wrong:
                raise DataError(
                    f'{getattr(sample, "img_path", "a training sample")} has the label ids '
                    f'{wrong[:5]}: the head has num_classes={num_classes} (ids 0 to '
                    f'{num_classes - 1})'
                    + (f' and ignores {ignored}' if ignored is not None else '')
                    + '; mend the labels, num_classes or reduce_zero_label'
                )


def _labels(sample: Any) -> Iterator[Tensor]:
    if 'gt_sem_seg' in sample:
        yield sample.gt_sem_seg.data
    # Multi-label and soft targets are scores, not ids.
    if 'gt_label' in sample and 'gt_score' not in sample:
        yield sample.gt_label
