"""Accuracy against trained parameters: the points that nothing beats, and how they are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING

from .plan_map import short_number
from .style import GREY, colour_of, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['draw_frontier', 'frontier']

MARKERS = 'os^Dv<>P'
FEW = 8  # points whose legend is one column
SIDE_BY_SIDE = 90  # characters of two labels that fit into the figure


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The points that no other beats with as many parameters or fewer.

    Args:
        points: Parameters and accuracy by name.

    Returns:
        Their names, by rising parameters.

    Example:
        >>> frontier({'a': (1, 50.0), 'b': (2, 60.0), 'c': (3, 55.0)})
        ['a', 'b']
    """
    best: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not best or points[name][1] > points[best[-1]][1]:
            best.append(name)
    return best


def draw_frontier(
    points: Mapping[str, tuple[float, float]],
    labels: Mapping[str, str],
    across: str,
    upwards: str,
    *,
    errors: Mapping[str, float] | None = None,
) -> Figure:
    """Every point with its label in a legend, and the line of the best.

    Args:
        points: Parameters and accuracy by name, in the order of the legend.
        labels: What the legend says of each.
        across: Title of the axis of parameters.
        upwards: Title of the axis of accuracy.
        errors: Half the length of a bar through a point, in units of accuracy.
    """
    best = frontier(points)
    longest = sorted(map(len, labels.values()))[-2:]
    columns = 2 if len(points) > FEW and sum(longest) <= SIDE_BY_SIDE else 1
    figure = new_figure(7.5, 3.6 + 0.18 * ceil(len(points) / columns))
    axes = figure.subplots()
    if len(best) > 1:
        line = [points[name] for name in best]
        axes.step(*zip(*line, strict=True), where='post', color=GREY, linestyle='--',
                  linewidth=1, label='best at no more parameters', zorder=1)  # fmt: skip
    for i, (name, (size, value)) in enumerate(points.items()):
        if errors and errors.get(name):
            axes.errorbar([size], [value], yerr=[errors[name]], color=GREY, linewidth=0.8, zorder=1)
        axes.scatter([size], [value], color=colour_of(i), marker=MARKERS[i // 7 % 8], s=42,
                     label=labels[name], edgecolors='black', linewidths=0.5)  # fmt: skip
    # Linear probing trains nothing of the backbone: zero needs a place beside the millions.
    positive = [size for size, _ in points.values() if size]
    if positive and max(positive) > 30 * min(positive):
        axes.set_xscale('symlog', linthresh=min(positive))
    axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
    axes.set_xlabel(across)
    axes.set_ylabel(upwards)
    axes.margins(x=0.06, y=0.12)
    axes.grid()
    figure.legend(loc='outside lower left', ncols=columns)
    return figure
