"""Indices in few bits: as a run, as gaps, or as they are, whichever is shortest.

=======  ============================================  ============================================
coding   form                                          bits
=======  ============================================  ============================================
run      ``['run', first, count]``                     none: indices that follow each other (LoRA)
gaps     ``['gaps', k, count, length in bits]``        Rice codes of ``(next - last - 1) mod size``
bits     ``['bits', count]``                           each in the bits that ``size - 1`` has
=======  ============================================  ============================================

A Rice code of n is ``n >> k`` ones, a zero, and the last k bits of n. Entries in rising order have
geometric gaps, of which it takes within 4 % of the entropy; rows and columns, most selected first,
rise as long as the number of selected entries is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ['MOST_IN_RUNS', 'num_bytes', 'pack', 'unpack']

# Indices that a file may claim by runs, which cost it no bits: rows and columns of all matrices.
MOST_IN_RUNS = 1 << 23
# Parameters of the Rice code that are tried.
LARGEST_K = 40


def pack(
    indices: Sequence[int], size: int, most_in_run: int = MOST_IN_RUNS
) -> tuple[list[Any], bytes]:
    """Form and bits of indices below `size`, at least one; `unpack` gives them back.

    Args:
        indices: In any order.
        size: One more than the largest may be.
        most_in_run: As many may be claimed by a run.
    """
    first, count = indices[0], len(indices)
    if count <= most_in_run and all(index == first + at for at, index in enumerate(indices)):
        return ['run', first, count], b''
    gaps = [(new - old - 1) % size for old, new in zip([-1, *indices], indices, strict=False)]
    lengths = {k: sum(gap >> k for gap in gaps) + count * (k + 1) for k in _candidates(gaps)}
    k, length = min(lengths.items(), key=lambda item: item[1])
    width = _width(size)
    if length >= count * width:
        return ['bits', count], _to_bytes(''.join(format(i, f'0{width}b') for i in indices))
    low = f'0{k}b' if k else ''
    mask = (1 << k) - 1
    codes = ('1' * (gap >> k) + '0' + (format(gap & mask, low) if k else '') for gap in gaps)
    return ['gaps', k, count, length], _to_bytes(''.join(codes))


def num_bytes(form: Any, size: int) -> int:
    """Bytes of the bits that a form says to have, to be held against those that are there.

    Raises:
        ValueError: If it is no form.
    """
    kind = form[0] if isinstance(form, list) and form else None
    numbers: list[int] = form[1:] if isinstance(form, list) else []
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f'{str(form)[:60]} is no form of indices')
    if kind == 'run' and len(numbers) == 2:
        return 0
    if kind == 'bits' and len(numbers) == 1:
        return -(-numbers[0] * _width(size) // 8)
    if kind == 'gaps' and len(numbers) == 3 and numbers[0] <= LARGEST_K:
        k, count, length = numbers
        if count * (k + 1) <= length:  # each code has a zero and k bits at least
            return -(-length // 8)
    raise ValueError(f'{str(form)[:60]} is no form of indices')


def unpack(form: list[Any], data: bytes, size: int) -> list[int]:
    """The indices of a form and its bits; `num_bytes` has looked at the form.

    Raises:
        ValueError: If the bits are not those of the form.
    """
    if form[0] == 'run':
        return list(range(form[1], form[1] + form[2]))
    bits = format(int.from_bytes(data, 'big'), f'0{8 * len(data)}b') if data else ''
    if form[0] == 'bits':
        width, count = _width(size), form[1]
        _check_rest(bits[count * width :])
        return [int(bits[at : at + width], 2) for at in range(0, count * width, width)]
    _, k, count, length = form
    _check_rest(bits[length:])
    found, at, last = [], 0, -1
    for _ in range(count):
        zero = bits.index('0', at, length)  # a ValueError where there is none
        gap, at = zero - at, zero + 1 + k
        if at > length:
            raise ValueError('the bits end within an index')
        last = (last + 1 + ((gap << k) | int(bits[zero + 1 : at] or '0', 2))) % size
        found.append(last)
    if at != length:
        raise ValueError('there are more bits than indices')
    return found


def _candidates(gaps: Sequence[int]) -> range:
    """Parameters of the Rice code around the best one, the bits of the mean gap."""
    best = min(LARGEST_K, max(1, sum(gaps) // len(gaps)).bit_length())
    return range(max(0, best - 3), min(LARGEST_K, best + 1) + 1)


def _width(size: int) -> int:
    return max(1, (size - 1).bit_length())


def _to_bytes(bits: str) -> bytes:
    """Bits as whole bytes, with zeros at the end."""
    length = -(-len(bits) // 8)
    return int(bits.ljust(8 * length, '0'), 2).to_bytes(length, 'big')


def _check_rest(bits: str) -> None:
    if len(bits) > 7 or '1' in bits:
        raise ValueError('there are more bits than indices')
