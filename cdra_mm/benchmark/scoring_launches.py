"""How many operations one more batch launches while it is scored: see `launches`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from cdra_mm.core import estimate_scores
from cdra_mm.core.scoring import square_sink, squares
from cdra_mm.core.scoring.mean_gradients import mean_gradients

from .case import Case
from .launch_counter import LaunchCounter

__all__ = ['SCORINGS', 'count_scoring']

SCORINGS: dict[str, Callable[..., Any]] = {
    'scores (Eq. 3), each batch more': estimate_scores,
    'mean gradients (descent), each batch more': mean_gradients,
}


def count_scoring(case: Case) -> dict[str, Counter[str]]:
    """Launches of each batch after the first two, by what is scored and by operation."""
    model, batch = case.make_model(), case.make_batch()
    found = {}
    for name, score in SCORINGS.items():
        counts = []
        for batches in (2, 3):
            with LaunchCounter() as counter, _squares_as_kernel(counter):
                score(model, [batch] * batches, case.losses)
            counts.append(counter.counts)
        found[name] = counts[1] - counts[0]
    return found


@contextmanager
def _squares_as_kernel(counter: LaunchCounter) -> Iterator[None]:
    """The squares of a matrix are one kernel on a GPU, of the most part, though not on a CPU."""
    plain = squares.add_squares

    def one(total: Tensor, x: Tensor, grad: Tensor) -> None:
        counter.counts['add_squared_gradients'] += 1
        with _disable_current_modes():
            plain(total, x, grad)

    with patch.object(square_sink, 'add_squares', one):
        yield
