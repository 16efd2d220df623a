"""Accuracy against trainable parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from cdra_mm.pictures import GREY, colour_of, new_figure
from cdra_mm.pictures.plan_map import short_number

from .picture import Picture, Table
from .run import Run

__all__ = ['frontier', 'frontier_picture', 'headline']

# The figure that stands for a run, the first that it has.
HEADLINES = ('mIoU', 'accuracy/top1', 'single-label/f1-score')
MARKERS = 'os^Dv<>P'


def headline(summary: Mapping[str, Any]) -> tuple[str, float, str] | None:
    """The one figure of a run: its name, its value, and on which images it was measured."""
    for key, where in (('test_metrics', 'test'), ('metrics', 'validation')):
        metrics = {
            name: float(value)
            for name, value in (summary.get(key) or {}).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name in (*HEADLINES, *metrics):
            if name in metrics:
                return name, metrics[name], where
    return None


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


def frontier_picture(runs: Mapping[str, Run]) -> tuple[Picture | None, list[str]]:
    """Every run as a point, with the line of the best.

    Returns:
        The picture, None unless two runs are measured alike; and why runs are left out: they
        lack the figure that most have.
    """
    measured = {name: headline(run.summary) for name, run in runs.items()}
    figures = Counter((entry[0], entry[2]) for entry in measured.values() if entry)
    if not figures:
        return None, ['No run has metrics: accuracy against trainable parameters cannot be shown.']
    (figure_name, where), _ = figures.most_common(1)[0]
    missing = []
    points: dict[str, tuple[float, float]] = {}
    for name, run in runs.items():
        entry, size = measured[name], run.summary.get('trainable_backbone')
        if size is None and run.plan is not None:
            size = run.plan.num_trainable
        if entry is None or size is None or (entry[0], entry[2]) != (figure_name, where):
            missing.append(
                f'{name} is not among accuracy against trainable parameters: it has no '
                f'{figure_name} on the {where} images.'
            )
        else:
            points[name] = (size, entry[1])
    if len(points) < 2:
        return None, [*missing, 'Fewer than two runs are measured alike: there is no scatter.']
    best = frontier(points)

    def draw():
        figure = new_figure(7.5, 3.6 + 0.18 * len(points))
        axes = figure.subplots()
        if len(best) > 1:
            line = [points[name] for name in best]
            axes.step(*zip(*line, strict=True), where='post', color=GREY, linestyle='--',
                      linewidth=1, label='best at no more parameters', zorder=1)  # fmt: skip
        for i, (name, (size, value)) in enumerate(points.items()):
            text = f'{name}: {value:.4g} at {size:,}'
            axes.scatter([size], [value], color=colour_of(i), marker=MARKERS[i // 7 % 8], s=42,
                         label=text, edgecolors='black', linewidths=0.5)  # fmt: skip
        # Linear probing trains nothing of the backbone: zero needs a place beside the millions.
        positive = [size for size, _ in points.values() if size]
        if positive and max(positive) > 30 * min(positive):
            axes.set_xscale('symlog', linthresh=min(positive))
        axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
        axes.set_xlabel('trainable parameters of the backbone')
        axes.set_ylabel(f'{figure_name} ({where})')
        axes.margins(x=0.06, y=0.12)
        axes.grid()
        figure.legend(loc='outside lower left', ncols=1)
        return figure

    picture = Picture(
        'accuracy_and_parameters',
        'Accuracy against trainable parameters',
        f'{figure_name} on the {where} images against the trainable parameters of the backbone '
        '(the head comes on top). The dashed line is the best that is reached with no more '
        'parameters; it says nothing about the spread between seeds.',
        draw,
        Table(
            ('run', 'trainable backbone parameters', f'{figure_name} ({where})', 'on the frontier'),
            [(name, *point, name in best) for name, point in points.items()],
        ),
        'comparison',
    )
    return picture, missing
