"""Accuracy against trainable parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from cdra_mm.pictures.frontier import draw_frontier, frontier

from .picture import Picture, Table
from .run import Run

__all__ = ['frontier_picture', 'headline']

# The figure that stands for a run, the first that it has.
HEADLINES = ('mIoU', 'accuracy/top1', 'single-label/f1-score')


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
    labels = {name: f'{name}: {value:.4g} at {size:,}' for name, (size, value) in points.items()}
    picture = Picture(
        'accuracy_and_parameters',
        'Accuracy against trainable parameters',
        f'{figure_name} on the {where} images against the trainable parameters of the backbone '
        '(the head comes on top). The dashed line is the best that is reached with no more '
        'parameters; it says nothing about the spread between seeds.',
        partial(
            draw_frontier,
            points,
            labels,
            'trainable parameters of the backbone',
            f'{figure_name} ({where})',
        ),
        Table(
            ('run', 'trainable backbone parameters', f'{figure_name} ({where})', 'on the frontier'),
            [(name, *point, name in best) for name, point in points.items()],
        ),
        'comparison',
    )
    return picture, missing
