"""One global top-k over all scores (design D4).

A radix selection: scores are non-negative fp32, so the order of their bit
patterns is their order. A histogram of the upper 16 bits finds the bucket that
holds the k-th largest score, a histogram of the lower 16 bits inside it finds
the score itself. Nothing is sorted and nothing is copied: the scratch is one
chunk of ``CHUNK`` entries, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .errors import PlanError

__all__ = ['bits_of', 'histograms', 'requested_count', 'select', 'value_of']

BUCKETS = 1 << 16  # of the upper and of the lower half of an fp32 bit pattern
CHUNK = 1 << 22  # entries


def select(
    scores: Mapping[str, Tensor],
    *,
    gamma: float | None = None,
    num_sensitive: int | None = None,
) -> dict[str, Tensor]:
    """Masks of the globally largest scores (CDRA-SPT, step 1).

    Args:
        scores: Non-negative fp32 scores by target name, any shapes.
        gamma: Fraction of all entries to select, in (0, 1]; at least one entry.
        num_sensitive: Number of entries to select.

    Returns:
        Bool masks, True = selected, in the scores' shapes and on their devices.
        Exactly k entries are selected; ties go to the earlier target, then to
        the lower row-major index.

    Raises:
        PlanError: If not exactly one of `gamma` and `num_sensitive` is given,
            either is out of range, or a score is negative or not a number.

    Example:
        >>> masks = select({'a': torch.tensor([1., 3.]), 'b': torch.tensor([3., 2.])},
        ...                num_sensitive=2)
        >>> masks['a'].tolist(), masks['b'].tolist()
        ([False, True], [True, False])
    """
    count = requested_count(scores, gamma=gamma, num_sensitive=num_sensitive)
    threshold, num_ties = _kth_largest(scores, count)
    masks: dict[str, Tensor] = {}
    for name, score in scores.items():
        mask = score > threshold
        if num_ties:
            ties = (score == threshold).flatten()
            num_here = int(ties.sum())
            if num_here > num_ties:
                ties[torch.nonzero(ties).flatten()[num_ties:]] = False
            num_ties -= min(num_ties, num_here)
            mask |= ties.view_as(mask)
        masks[name] = mask
    return masks


def requested_count(
    scores: Mapping[str, Tensor], *, gamma: float | None, num_sensitive: int | None
) -> int:
    """The number of entries that `gamma` or `num_sensitive` asks for, checked."""
    total = sum(score.numel() for score in scores.values())
    if not total:
        raise PlanError('there is no score: expected at least one competing entry')
    if (gamma is None) == (num_sensitive is None):
        raise PlanError(f'gamma={gamma}, num_sensitive={num_sensitive}: give exactly one of them')
    if gamma is not None:
        if not 0 < gamma <= 1:
            raise PlanError(f'gamma={gamma}: expected a fraction in (0, 1]')
        return max(1, int(gamma * total))
    if not isinstance(num_sensitive, int) or not 1 <= num_sensitive <= total:
        raise PlanError(
            f'num_sensitive={num_sensitive!r}: expected a count from 1 to {total}, the number of '
            'competing entries'
        )
    return num_sensitive


def bits_of(score: Tensor) -> Tensor:
    """The bit patterns of fp32 scores, flat int32; -0.0 would be negative. A view."""
    return score.reshape(-1).view(torch.int32)


def value_of(bits: int) -> float:
    """The fp32 value of a bit pattern."""
    return float(torch.tensor([bits], dtype=torch.int32).view(torch.float32))


def histogram(score: Tensor, upper: int | None = None) -> Tensor:
    """Counts of the entries by one half of their bit pattern, int64 ``[BUCKETS]``.

    Args:
        score: fp32 scores, any shape.
        upper: None counts by the upper 16 bits; a number counts, among the
            entries whose upper 16 bits equal it, by the lower 16 bits.

    Raises:
        PlanError: If a score is negative or not a number (upper pass only).
    """
    if score.dtype != torch.float32:
        raise PlanError(f'scores are {score.dtype}: expected torch.float32')
    counts = torch.zeros(BUCKETS, dtype=torch.int64, device=score.device)
    for bits in torch.split(bits_of(score.detach()), CHUNK):
        high = bits >> 16
        if upper is not None:
            high = (bits & 0xFFFF)[high == upper]
        elif bool((high < 0).any()) or bool((bits >= 0x7F800000).any()):
            raise PlanError(
                'a score is negative, infinite or not a number: expected mean squared gradients'
            )
        counts += torch.bincount(high, minlength=BUCKETS)
    return counts


def _kth_largest(scores: Mapping[str, Tensor], count: int) -> tuple[float, int]:
    """The count-th largest score and how many entries equal to it are selected."""
    upper, left = _bucket(_total(scores, None), count)
    lower, left = _bucket(_total(scores, upper), left)
    return value_of(upper << 16 | lower), left


def histograms(scores: Mapping[str, Tensor], upper: int | None = None) -> Iterator[Tensor]:
    """`histogram` of each target in turn, on the CPU; its errors name the target."""
    for name, score in scores.items():
        try:
            yield histogram(score, upper).cpu()
        except PlanError as error:
            raise PlanError(f'{name}: {error}') from None


def _total(scores: Mapping[str, Tensor], upper: int | None) -> Tensor:
    return sum(histograms(scores, upper), torch.zeros(BUCKETS, dtype=torch.int64))


def _bucket(counts: Tensor, count: int) -> tuple[int, int]:
    """The bucket of the count-th largest entry, and which of its entries that is (from 1)."""
    above = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(above, count))
    before = int(above[position - 1]) if position else 0
    return BUCKETS - 1 - position, count - before
