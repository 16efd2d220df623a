"""One global top-k over all scores (design D4).

A radix selection: scores are non-negative fp32, so the order of their bit
patterns is their order. A histogram of the upper 16 bits finds the bucket that
holds the k-th largest score, a histogram of the lower 16 bits inside it finds
the score itself. Nothing is sorted and nothing is copied: the scratch is one
chunk of ``CHUNK`` entries, whatever the size of the model. The masks, a byte an
entry, come one target at a time, so that a caller need not hold them all.
Scores in bfloat16, for very large models, are upper halves: they are read as the
fp32 numbers that they are, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cdra_mm.errors import PlanError

from .threads import one_thread

__all__ = [
    'BUCKETS',
    'FINITE_BUCKETS',
    'Threshold',
    'bits_of',
    'coarse_histogram',
    'fine_histogram',
    'kth_largest',
    'masks_above',
    'requested_count',
    'select',
]

BUCKETS = 1 << 16  # of the upper and of the lower half of an fp32 bit pattern
FINITE_BUCKETS = 0x7F80  # upper halves below that of infinity, the sign bit clear
DTYPES = (torch.float32, torch.bfloat16)
CHUNK = 1 << 18  # entries; 1 MB, so that all that is done to a chunk finds it in the cache


class Threshold(NamedTuple):
    """What is selected.

    Attributes:
        bits: Entries whose bit pattern is above this one are selected,
        ties: and this many of those that equal it, in order.
    """

    bits: int
    ties: int


@one_thread()
def select(
    scores: Mapping[str, Tensor],
    *,
    gamma: float | None = None,
    num_sensitive: int | None = None,
) -> dict[str, Tensor]:
    """Masks of the globally largest scores (CDRA-SPT, step 1).

    Args:
        scores: Non-negative scores by target name, fp32 or bfloat16, any shapes.
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
    masks = masks_above(scores, kth_largest(scores, count))
    return {name: mask.clone() for name, mask in masks}


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


def masks_above(scores: Mapping[str, Tensor], threshold: Threshold) -> Iterator[tuple[str, Tensor]]:
    """Name and mask of each target in turn.

    The masks share their memory: each one lasts until the next is asked for.
    """
    bits, ties = threshold
    room = torch.empty(0, dtype=torch.bool, device='cpu')
    for name, score in scores.items():
        if room.numel() < score.numel() or room.device != score.device:
            room = torch.empty(score.numel(), dtype=torch.bool, device=score.device)
        mask = room[: score.numel()].view(score.shape)
        for entries, out in zip(_chunks(score), torch.split(mask.view(-1), CHUNK), strict=True):
            torch.gt(entries, bits, out=out)
            if ties:
                equal = entries == bits
                num_here = int(torch.count_nonzero(equal))
                if num_here > ties:
                    equal[torch.nonzero(equal).flatten()[ties:]] = False
                ties -= min(ties, num_here)
                out |= equal
        yield name, mask


def kth_largest(scores: Mapping[str, Tensor], count: int) -> Threshold:
    """The threshold that selects exactly `count` entries.

    Raises:
        PlanError: If a score is negative or not a number, naming the target.
    """
    coarse = sum((coarse_histogram(name, score) for name, score in scores.items()), _none())
    upper, left = _bucket(coarse, count)
    fine = sum((fine_histogram(score, upper)[1] for score in scores.values()), _none())
    lower, left = _bucket(fine, left)
    return Threshold(upper << 16 | lower, left)


def bits_of(score: Tensor) -> Tensor:
    """The bit patterns of scores as fp32, flat int32; -0.0 would be negative. A view of fp32."""
    flat = score.detach().reshape(-1)
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.int16).to(torch.int32).bitwise_left_shift_(16)
    return flat.view(torch.int32)


def coarse_histogram(name: str, score: Tensor) -> Tensor:
    """Counts of a target's entries by the upper 16 bits. int64 ``[BUCKETS]``, on the CPU.

    Raises:
        PlanError: If a score is negative or not a number, or of another type.
    """
    if score.dtype not in DTYPES:
        known = ' or '.join(map(str, DTYPES))
        raise PlanError(f'{name}: scores are {score.dtype}: expected {known}')
    counts = torch.zeros(BUCKETS, dtype=torch.int64, device=score.device)
    for entries in _chunks(score):
        upper = (entries >> 16).bitwise_and_(0xFFFF)  # the shift drags the sign bit along
        counts += torch.bincount(upper, minlength=BUCKETS)
    counts = counts.cpu()
    if bool(counts[FINITE_BUCKETS:].any()):
        raise PlanError(
            f'{name}: a score is negative, infinite or not a number: expected mean squared '
            'gradients'
        )
    return counts


def fine_histogram(score: Tensor, upper: int) -> tuple[int, Tensor]:
    """Looks into one bucket of the upper 16 bits.

    Returns:
        The number of entries above the bucket, and the counts of the entries
        inside it by the lower 16 bits. int64 ``[BUCKETS]``, on the CPU.
    """
    floor, num_above = upper << 16, 0
    counts = torch.zeros(BUCKETS, dtype=torch.int64, device=score.device)
    for entries in _chunks(score):
        entries = _at_least(entries, floor)
        inside = entries[entries < floor + BUCKETS]
        num_above += len(entries) - len(inside)
        # Mostly few: adding ones to them costs less than a new vector of counts.
        counts.index_add_(0, inside - floor, torch.ones_like(inside, dtype=torch.int64))
    return num_above, counts.cpu()


def _at_least(entries: Tensor, floor: int) -> Tensor:
    """Those of the entries, in order."""
    if entries.device.type == 'cpu':  # numpy takes a quarter of the time that torch takes
        values = entries.numpy()
        return torch.from_numpy(values[values >= floor])
    return entries[entries >= floor]


def _chunks(score: Tensor) -> Iterator[Tensor]:
    """The bit patterns of a target, ``CHUNK`` entries at a time."""
    return map(bits_of, torch.split(score.detach().reshape(-1), CHUNK))


def _none() -> Tensor:
    return torch.zeros(BUCKETS, dtype=torch.int64, device='cpu')


def _bucket(counts: Tensor, count: int) -> tuple[int, int]:
    """The bucket of the count-th largest entry, and which of its entries that is (from 1)."""
    above = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(above, count))
    before = int(above[position - 1]) if position else 0
    return BUCKETS - 1 - position, count - before
