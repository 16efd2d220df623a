"""How often each class occurs in a split, and how that is printed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from cdra_mm.columns import aligned
from cdra_mm.spelling import first_of

__all__ = ['Tally', 'class_lines']

FEW = 24  # classes up to which a table with a line for each is printed
NAMED = 10  # empty classes that are named before the rest is only counted


@dataclass
class Tally:
    """Occurrences of each class id in a split.

    Attributes:
        images: Number of images with the class.
        pixels: Number of pixels with the class; empty where labels are ids.
    """

    images: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)


def class_lines(
    tallies: Mapping[str, Tally],
    num_classes: int | None,
    *,
    table: bool = True,
    names: Mapping[int, str] | None = None,
) -> list[str]:
    r"""The classes of a part: a table of them when they are few, else a line a split.

    Args:
        tallies: The occurrences in each split, by its name.
        num_classes: Number of classes; ``None`` where it is not known.
        table: Whether a table is wanted at all.
        names: Class names by id, for the table.

    Example:
        >>> print('\n'.join(class_lines({'train': Tally(Counter([0, 0, 1]))}, 3)))
          class      train
          -------  -------
          0              2
          1              1
          2              0
        >>> class_lines({'train': Tally(Counter([0, 0, 1]))}, 3, table=False)
        ['  train: 2 of 3 classes, 1 to 2 images each (median 1.5); without an image: 2']
    """
    ids = _ids(tallies, num_classes)
    if not any(tally.images for tally in tallies.values()):
        return []
    if not table or len(ids) > FEW:
        return [
            f'  {name}: {_summary(tally, ids)}' for name, tally in tallies.items() if tally.images
        ]
    titles = {number: f'{number} {(names or {}).get(number, "")}'.rstrip() for number in ids}
    rows = [
        [titles[number], *(_cell(tally, number) for tally in tallies.values())] for number in ids
    ]
    return [f'  {line}' for line in aligned(['class', *tallies], rows).splitlines()]


def _ids(tallies: Mapping[str, Tally], num_classes: int | None) -> list[int]:
    known = set(range(num_classes or 0))
    return sorted(known.union(*(tally.images for tally in tallies.values())))


def _cell(tally: Tally, number: int) -> str:
    total = tally.pixels.total()
    share = f' ({100 * tally.pixels[number] / total:.1f} %)' if total else ''
    return f'{tally.images[number]}{share}'


def _summary(tally: Tally, ids: list[int]) -> str:
    counts = [count for count in tally.images.values() if count]
    empty = [str(number) for number in ids if not tally.images[number]]
    text = (
        f'{len(counts)} of {len(ids)} classes, {min(counts)} to {max(counts)} images each '
        f'(median {statistics.median(counts):g})'
    )
    if empty:
        text += f'; without an image: {first_of(empty, NAMED)}'
    return text
