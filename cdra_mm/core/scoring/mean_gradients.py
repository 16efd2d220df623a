"""The mean gradient of the loss over training samples, of every target.

    G = 1/N sum_n dL_n / dW

Where Eq. 3 averages the squares, this averages the gradients themselves: what the samples agree
on. It needs no watch over single samples: ordinary backward passes, one a batch, whatever the
operations of the model are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..model.evaluation import evaluation_mode
from .losses import LossFn, finite_losses
from .one_by_one import gradient_not_finite
from .ordinary_pass import OrdinaryPass
from .score_sums import Combine, ScoreSums
from .scored_parameters import ScoredParameters

__all__ = ['mean_gradients']


def mean_gradients(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    targets: Iterable[str] | None = None,
    progress: Callable[[int], None] | None = None,
    combine: Combine | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """Mean gradient of every target over the samples.

    The model runs in ``eval()`` mode and is left as it was found. Beside the sums a pass holds the
    gradient of one parameter at a time.

    Args:
        model: Any module. Weights may be frozen; no ``.grad`` is touched.
        batches: As for `estimate_scores`.
        loss_fn: As for `estimate_scores`; called once a batch.
        targets: Names to look at. Default: `find_targets(model)`.
        progress: Called after each batch with the number of samples so far.
        combine: As for `estimate_scores`; counts are of samples.
        dtype: As for `estimate_scores`.
        device: As for `estimate_scores`.

    Returns:
        Mean gradients by target name, in the target's shape, all views of one tensor per device.

    Raises:
        ScoreError: If there is no batch, a loss or gradient is not finite, all gradients are
            zero, the type is unknown, or the model carries adapters.
        PlanError: If a name does not fit the model.
    """
    scored = ScoredParameters(model, targets)
    sums = ScoreSums(scored.unique, dtype, device)
    count = 0
    ordinary = OrdinaryPass(scored.unique, sums)
    with evaluation_mode(model), scored.requiring_grad(), ordinary:
        for batch in batches:
            with torch.enable_grad():
                losses, size = finite_losses(model, loss_fn(model, batch), count)
                if not ordinary.run(losses):
                    raise gradient_not_finite(count, count + size - 1)
            count += size
            if progress is not None:
                progress(count)
    return scored.averaged(sums, count, combine, what='mean gradients')
