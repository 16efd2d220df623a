"""Label ids that do not fit the head are named before they crash the loss, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from mmengine.dist import all_gather_object
from torch import Tensor, nn

from cdra_mm.errors import CDRAError, DataError

from ..data_check.label_rule import label_rule, last_head
from ..data_check.likely_mistakes import likely_mistakes
from ..data_check.watch import leaf_datasets

__all__ = ['LabelTally', 'check_labels', 'counted_labels', 'named_loss']


class LabelTally:
    """How often each label id was seen by `check_labels`.

    Attributes:
        counts: Pixels (or images) of each id.
    """

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def all_ignored(self, model: nn.Module) -> bool:
        """Whether labels were seen in this process, and the head ignores all of them."""
        ignored = getattr(last_head(model), 'ignore_index', None)
        return ignored is not None and set(self.counts) == {ignored}

    def likely_mistakes(self, model: nn.Module, dataset: Any, num_samples: int) -> list[str]:
        """What the labels of all processes say about mistakes; every process has to call it.

        Args:
            model: The model whose head takes them.
            dataset: The training data.
            num_samples: Samples that were seen, of all processes.
        """
        total: Counter[int] = Counter()
        for counts in all_gather_object(dict(self.counts)):
            total.update(counts)
        rule = label_rule(last_head(model))
        if rule is None:
            return []
        leaves = list(leaf_datasets(dataset))
        return likely_mistakes(
            total,
            rule,
            what=f'labels of the {num_samples} scored samples',
            names=(getattr(dataset, 'metainfo', None) or {}).get('classes') or (),
            reduces_zero=any(getattr(leaf, 'reduce_zero_label', False) for leaf in leaves),
            is_whole=num_samples >= len(dataset),
        )


_TALLY: ContextVar[LabelTally | None] = ContextVar('tally', default=None)


@contextmanager
def counted_labels() -> Iterator[LabelTally]:
    """Counts the labels that `check_labels` sees inside."""
    tally = LabelTally()
    token = _TALLY.set(tally)
    try:
        yield tally
    finally:
        _TALLY.reset(token)


def check_labels(model: nn.Module, samples: Sequence[Any]) -> None:
    """Checks the labels of a batch against the model's head.

    Labels that are no integers (a depth, a height), and those of a head with one output and no
    sigmoid, are left to the loss: see `named_loss`.

    Raises:
        DataError: If an id is neither a class of the head nor ignored.
    """
    rule = label_rule(last_head(model))
    if rule is None:
        return
    tally = _TALLY.get()
    for sample in samples:
        for labels in _labels(sample):
            if not _are_ids(labels):
                continue
            ids, counts = (found.tolist() for found in labels.unique(return_counts=True))
            wrong = rule.wrong(ids)
            if wrong:
                raise DataError(
                    f'{_image(sample)} has the label ids {wrong[:5]}: {rule.expected()}'
                    '; mend the labels, num_classes or reduce_zero_label'
                )
            if tally is not None:
                tally.counts.update(dict(zip(ids, counts, strict=True)))


@contextmanager
def named_loss(model: nn.Module, samples: Sequence[Any]) -> Iterator[None]:
    """A loss that fails for labels that `check_labels` leaves to it names the image.

    Raises:
        DataError: In the place of that error.
    """
    try:
        yield
    except (CDRAError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the loss makes of them
        rule = label_rule(last_head(model))
        for sample in samples:
            for labels in _labels(sample):
                if _are_ids(labels) and (rule is None or rule.limit is not None):
                    continue
                raise DataError(
                    f'{_image(sample)} has labels of the type {labels.dtype}, '
                    f'{labels.min().item():g} to {labels.max().item():g}, and the loss cannot '
                    f'take them ({type(error).__name__}: {" ".join(str(error).split())}): a '
                    'classifier expects integers, one class id each; mend the labels, the '
                    'transform that loads them, or the loss'
                ) from error
        raise


def _labels(sample: Any) -> Iterator[Tensor]:
    if 'gt_sem_seg' in sample:
        yield sample.gt_sem_seg.data
    # Multi-label and soft targets are scores, not ids.
    if 'gt_label' in sample and 'gt_score' not in sample:
        yield sample.gt_label


def _are_ids(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def _image(sample: Any) -> str:
    return str(getattr(sample, 'img_path', 'a training sample'))
