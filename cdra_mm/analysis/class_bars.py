"""A bar for each class, readable from 3 to 150 of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cdra_mm.pictures import colour_of, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['draw_class_bars', 'shortened']

LONGEST = 24  # letters of a class name
ROW = 0.17  # inches for a class


def draw_class_bars(
    classes: Sequence[str],
    bars: Sequence[float] | np.ndarray,
    label: str,
    *,
    dots: Sequence[float] | np.ndarray | None = None,
    dots_label: str = '',
    by_value: bool = True,
) -> Figure:
    """Draws horizontal bars in percent; the picture grows with their number.

    Args:
        classes: Names.
        bars: A percentage for each; not a number where there is none.
        label: What they are.
        dots: Second percentages, drawn as dots.
        dots_label: What these are.
        by_value: The best on top; otherwise in the order given.
    """
    order = list(range(len(classes)))
    if by_value:
        order.sort(key=lambda i: (math.isnan(bars[i]), -bars[i] if bars[i] == bars[i] else 0))
    figure = new_figure(7.5, 1.1 + ROW * max(3, len(classes)))
    axes = figure.subplots()
    known = [bar for bar in bars if not math.isnan(bar)]
    at = range(len(order))
    values = [0 if math.isnan(bars[i]) else bars[i] for i in order]
    axes.barh(at, values, height=0.7, color=colour_of(0), label=label)
    if dots is not None:
        ends = [dots[i] for i in order]
        axes.plot(ends, at, 'o', ms=4, color=colour_of(1), label=dots_label, clip_on=False)
    for row, i in enumerate(order):
        if math.isnan(bars[i]):
            axes.text(1, row, 'in no image', va='center', fontsize=6.5)
    if known:
        mean = sum(known) / len(known)
        axes.axvline(
            mean, color=colour_of(6), lw=1, ls='--', label=f'mean of {label}: {mean:.1f} %'
        )
    axes.set_yticks(at, [shortened(classes[i]) for i in order], fontsize=7.5)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel('percent')
    axes.grid(axis='x')
    axes.tick_params(axis='y', length=0)
    figure.legend(loc='outside upper center', ncols=3)
    return figure


def shortened(name: str, longest: int = LONGEST) -> str:
    """A name of at most so many letters.

    Example:
        >>> shortened('television receiver', 12)
        'television …'
    """
    return name if len(name) <= longest else name[: longest - 1] + '…'
