"""Samples of which every pixel is ignored, where the loss has nothing to say about them.

Some losses (Lovász) are not a number there. Training averages over other crops and goes on;
scoring is of single samples, so such a sample is left out of the scores and of their count.
A loss that is not finite on a sample with labels stays an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from mmengine.dist import all_gather_object
from mmengine.logging import MMLogger
from torch import Tensor, nn

from cdra_mm.errors import DataError

from ..data_check.label_rule import last_head

__all__ = ['Unlabelled', 'no_labels']

Batch = TypeVar('Batch')


class Unlabelled:
    """What is left out, by batch.

    Args:
        per_batch: Whether a batch counts as one, with its mean loss.

    Attributes:
        images: Paths of the samples that were left out.
        count: What they are worth in the number that scores are divided by.
    """

    def __init__(self, per_batch: bool = False) -> None:
        self.per_batch = per_batch
        self.images: list[str] = []
        self.count = 0
        self._current: tuple[list[str], int] = ([], 0)

    def noted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; what was left out of one is noted when the next is asked for.

        The losses of a batch may be computed more than once.
        """
        for batch in batches:
            self._current = ([], 0)
            yield batch
            self.images += self._current[0]
            self.count += self._current[1]

    def stacked(self, model: nn.Module, losses: Sequence[Tensor], samples: Sequence[Any]) -> Tensor:
        """The losses of a batch ``[B]``, a constant zero for each sample that is left out."""
        stacked = torch.stack(list(losses))
        bad = torch.nonzero(~torch.isfinite(stacked.detach())).flatten().tolist()
        out = [n for n in bad if _is_unlabelled(model, samples[n])]
        left = len(samples) - len(out)
        images = [str(getattr(samples[n], 'img_path', 'a sample without a path')) for n in out]
        self._current = (images, (not left) if self.per_batch else len(out))
        if not out:
            return stacked
        zero = stacked.new_zeros(())
        stacked = torch.stack([zero if n in out else loss for n, loss in enumerate(losses)])
        # The mean is one over the samples that are left.
        return stacked * (len(samples) / left) if self.per_batch and left else stacked

    def tell(self, logger: MMLogger, num_samples: int) -> int:
        """Says once what was left out, on all processes together; gives its number."""
        images = [image for share in all_gather_object(self.images) for image in share]
        if images:
            logger.warning(
                f'{len(images)} of {num_samples} training samples ({images[0]} ...) have no '
                'labelled pixel, and a loss that is not finite: left out of the scores'
            )
        return len(images)

    def require_others(self, count: int) -> int:
        """The count of what was scored.

        Raises:
            DataError: If nothing is left.
        """
        if not count and self.images:
            raise no_labels(f'{self.images[0]} ...')
        return count


def no_labels(which: str) -> DataError:
    """The error where nothing that was drawn has labels."""
    return DataError(
        f'none of the training samples drawn ({which}) has a labelled pixel (or image): check the '
        'labels, reduce_zero_label and the ignore_index of the head'
    )


def _is_unlabelled(model: nn.Module, sample: Any) -> bool:
    """Whether a segmentation sample has pixels, and the head ignores all of them."""
    if 'gt_sem_seg' not in sample:
        return False
    ignored = getattr(last_head(model), 'ignore_index', None)
    return ignored is not None and bool((sample.gt_sem_seg.data == ignored).all())
