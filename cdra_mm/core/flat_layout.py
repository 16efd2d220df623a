"""Where tensors lie that are laid out one after another in a flat one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['FlatLayout', 'begins_of', 'known_layout', 'layout_of', 'padded']

ALIGNMENT = 64  # entries: at least 128 bytes, in fp32 the 256 of an allocation of its own


class FlatLayout(NamedTuple):
    """Where tensors lie in a flat one.

    Attributes:
        begins: The first entry of each, and last where they end.
        looks: Shape, strides and first entry of each.
    """

    begins: list[int]
    looks: list[tuple[torch.Size, tuple[int, ...], int]]

    @property
    def length(self) -> int:
        """Entries of the flat tensor."""
        return self.begins[-1]

    def parts(self, flat: Tensor) -> list[Tensor]:
        """The tensors that lie in a flat one, views of it."""
        # A third of the time of splitting and viewing, of which a step does some hundreds.
        return [flat.as_strided(*look) for look in self.looks]


def layout_of(shapes: Sequence[torch.Size]) -> FlatLayout:
    """Of tensors of these shapes, contiguous.

    Example:
        >>> layout_of([torch.Size([2, 3]), torch.Size([4])]).looks
        [(torch.Size([2, 3]), (3, 1), 0), (torch.Size([4]), (1,), 64)]
    """
    begins = begins_of(shape.numel() for shape in shapes)
    looks = [(s, _strides(s), begin) for s, begin in zip(shapes, begins[:-1], strict=True)]
    return FlatLayout(begins, looks)


# For shapes that are asked for in every step.
known_layout = lru_cache(maxsize=4096)(layout_of)


def _strides(shape: torch.Size) -> tuple[int, ...]:
    return tuple(shape[i + 1 :].numel() for i in range(len(shape)))


def padded(numel: int) -> int:
    """Entries that a tensor takes up, so that the next one is aligned.

    Example:
        >>> padded(1), padded(64), padded(65)
        (64, 64, 128)
    """
    return -(-numel // ALIGNMENT) * ALIGNMENT


def begins_of(numels: Iterable[int]) -> list[int]:
    """Where tensors of so many entries begin, and last where they end.

    Example:
        >>> begins_of([1, 65])
        [0, 64, 192]
    """
    begins = [0]
    for numel in numels:  # torch 2.6 traces no `accumulate`
        begins.append(begins[-1] + padded(numel))
    return begins
