"""What the sensitive sets of several runs have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import mean
from typing import Any

import torch

from cdra_mm.pictures import SEQUENCE, new_figure

from .picture import Picture, Table
from .rank_comparison import short_name
from .regions import Region, mask_of
from .run import Run

__all__ = ['overlap_picture', 'overlaps']

SIDES = ('rows', 'columns', 'entries')


def overlaps(
    runs: Mapping[str, Run], regions: Mapping[str, Sequence[Region]]
) -> list[tuple[str, str, str, float, float, float | None]]:
    """The overlap of every two runs in every matrix that either touches.

    An overlap is the Jaccard index: what both have, over what either has.

    Returns:
        First run, second run, matrix, overlap of the rows, of the columns, of the selected
        entries (None unless both runs kept their masks).
    """
    found = []
    for first, second in combinations(runs, 2):
        one, two = ({r.name: r for r in regions[name]} for name in (first, second))
        for matrix in dict.fromkeys([*one, *two]):
            a, b = one.get(matrix), two.get(matrix)
            rows = _jaccard(set(a.rows if a else ()), set(b.rows if b else ()))
            cols = _jaccard(set(a.cols if a else ()), set(b.cols if b else ()))
            entries = _entries(mask_of(runs[first], matrix), mask_of(runs[second], matrix))
            found.append((first, second, matrix, rows, cols, entries))
    return found


def overlap_picture(runs: Mapping[str, Run], regions: Mapping[str, Sequence[Region]]) -> Picture:
    """A square of runs against runs, for rows, columns and, where known, entries."""
    found = overlaps(runs, regions)
    names = list(runs)
    pairs: dict[tuple[str, str], list[Any]] = {}
    for first, second, _, *values in found:
        pairs.setdefault((first, second), []).append(values)
    known = [
        i for i in range(3) if any(v[i] is not None for values in pairs.values() for v in values)
    ]

    def draw():
        import numpy as np

        size = len(names)
        figure = new_figure(7.5, 1.7 + 0.32 * size)
        panels = figure.subplots(1, len(known), squeeze=False)[0]
        for axes, side in zip(panels, known, strict=True):
            grid = np.eye(size)
            for i, j in combinations(range(size), 2):
                values = [v[side] for v in pairs.get((names[i], names[j]), ())]
                values = [value for value in values if value is not None]
                grid[i, j] = grid[j, i] = mean(values) if values else np.nan
            image = axes.imshow(100 * grid, vmin=0, vmax=100, cmap=SEQUENCE)
            for i, j in np.ndindex(grid.shape) if size <= 8 else ():
                if not np.isnan(grid[i, j]):
                    colour = 'black' if grid[i, j] > 0.5 else 'white'
                    text = f'{100 * grid[i, j]:.0f}'
                    axes.text(j, i, text, ha='center', va='center', color=colour, fontsize=8)
            axes.set_title(SIDES[side])
            axes.set_xticks(range(size), [str(i + 1) for i in range(size)])
            labels = [f'{i + 1}  {short_name(name)}' for i, name in enumerate(names)]
            first = axes is panels[0]
            axes.set_yticks(range(size), labels if first else [str(i + 1) for i in range(size)])
            axes.tick_params(length=0)
        bar = figure.colorbar(image, ax=list(panels), fraction=0.03, pad=0.02, shrink=0.8)
        bar.set_label('overlap (%)')
        bar.outline.set_visible(False)
        return figure

    entries = '' if 2 in known else ' Which entries overlap needs kept masks of both runs.'
    return Picture(
        'overlap',
        'What the runs have in common',
        'The overlap of what is sensitive in every two runs: what both have, over what either has, '
        f'as the mean over the matrices that either touches.{entries}',
        draw,
        Table(
            ('run', 'other run', 'matrix', 'overlap of rows', 'overlap of columns',
             'overlap of entries'),
            found,
        ),
        'comparison',
    )  # fmt: skip


def _jaccard(one: set[int], two: set[int]) -> float:
    return len(one & two) / len(one | two) if one or two else 1.0


def _entries(one: torch.Tensor | None, two: torch.Tensor | None) -> float | None:
    if one is None or two is None or one.shape != two.shape:
        return None
    either = int((one | two).sum())
    return int((one & two).sum()) / either if either else 1.0
