"""A figure that is not IoU, kept apart to read the paper's Table 3 (design D13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

__all__ = ['LegacyBitwiseMetric', 'bitwise_ratio']

EPSILON = 1e-6


@METRICS.register_module()
class LegacyBitwiseMetric(BaseMetric):
    """``sum(pred & truth) / sum(pred | truth)`` of class ids: this is not IoU.

    What the repository that the paper's Table 3 cites computed until 2025-09 under the name of IoU.
    It takes AND and OR of the binary digits of the class *numbers*, pixel by pixel, adds these
    numbers up over an image, and averages over images. So it depends on how the classes are
    numbered, a wrong pixel counts for as many digits as the two numbers share, class 0 counts for
    nothing, and a prediction can score higher or lower than its IoU. It is a diagnostic,
    to be compared with Table 3 and with nothing else; `IoUMetric` is the figure to report.

    Off by default. To have it beside the standard figures, list both::

        val_evaluator = [
            dict(type='IoUMetric', iou_metrics=['mIoU', 'mDice']),
            dict(type='cdra_mm.mm.metrics.LegacyBitwiseMetric'),
        ]

    Results, in percent: ``legacy/bitwise_ratio_not_iou`` and
    ``legacy/bitwise_dice_not_dice``, which is ``2 sum(pred & truth) / (sum(pred) + sum(truth))``.
    The repository averages the means of its batches; here every image counts the same,
    which differs only where the last batch is smaller.

    Args:
        ignore_index: Ignored pixels of the truth; there both numbers are set to 0, as in the
            repository.
        collect_device: See mmengine's ``BaseMetric``.
        prefix: Prefix of the results' names.
    """

    default_prefix = 'legacy'

    def __init__(
        self, ignore_index: int = 255, collect_device: str = 'cpu', prefix: str | None = None
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Notes both figures of every image of a batch."""
        for sample in data_samples:
            pred = sample['pred_sem_seg']['data'].squeeze()
            truth = sample['gt_sem_seg']['data'].squeeze().to(pred.device)
            self.results.append(bitwise_ratio(pred, truth, self.ignore_index))

    def compute_metrics(self, results: list[tuple[float, float]]) -> dict[str, float]:
        """The means over all images, in percent."""
        ratio, dice = (sum(values) / len(results) for values in zip(*results, strict=True))
        return {
            'bitwise_ratio_not_iou': round(100 * ratio, 2),
            'bitwise_dice_not_dice': round(100 * dice, 2),
        }


def bitwise_ratio(pred: Tensor, truth: Tensor, ignore_index: int) -> tuple[float, float]:
    """The two figures of one image, in [0, 1]; see `LegacyBitwiseMetric`.

    Args:
        pred: Predicted class ids, integer ``[H, W]``.
        truth: True ones.
        ignore_index: Id of ignored pixels of the truth.
    """
    valid = truth != ignore_index
    pred, truth = pred.to(torch.int64) * valid, truth.to(torch.int64) * valid
    both, either = (pred & truth).sum(), (pred | truth).sum()
    total = (pred + truth).sum()
    return (
        float((both + EPSILON) / (either + EPSILON)),
        float((2 * both + EPSILON) / (total + EPSILON)),
    )
