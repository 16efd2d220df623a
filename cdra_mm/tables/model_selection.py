"""Settings are chosen on the validation split, before the test images are ever looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .jobs import Job

__all__ = ['choose']


def choose(tried: Sequence[tuple[Job, Mapping[str, float]]]) -> tuple[dict[str, Any], float]:
    """The settings with the best first metric; of equals those that were declared first.

    Args:
        tried: The search runs of one method on one task, and their validation figures.

    Returns:
        The settings and their figure.

    Raises:
        ValueError: If nothing was tried.
    """
    if not tried:
        raise ValueError('nothing was tried')
    decisive = next(iter(tried[0][0].task.metrics))
    job, figures = max(tried, key=lambda entry: entry[1][decisive])  # max keeps the first
    return dict(job.chosen), figures[decisive]
