"""Sensitivity of every competing entry (CDRA-SPT, Eq. 3).

    s_ij = 1/N sum_n ( dL_n / dW_ij )^2

One forward and one backward of a batch give the exact squares of all its samples. Those of a batch
of one sample are ordinary (`ordinary_pass`). For several, `parameter_watch` puts an operation of
`scored_ops` in the place of each use of a competing parameter, whose backward adds the squares.
Every parameter that has a gradient has a score: `batch_scores` finds out what cannot be scored so,
and scores it one sample at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.errors import ScoreError

from ..model.evaluation import evaluation_mode
from .batch_scores import BatchScores
from .losses import LossFn, require_finite
from .mean_gradients import mean_gradients
from .score_sums import Combine, ScoreSums
from .scored_parameters import ScoredParameters
from .square_sink import SquareSink

__all__ = ['STATISTICS', 'LossFn', 'estimate_scores', 'require_finite']

STATISTICS = ('per_sample', 'per_batch', 'summed')


def estimate_scores(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    targets: Iterable[str] | None = None,
    statistic: str = 'per_sample',
    progress: Callable[[int], None] | None = None,
    combine: Combine | None = None,
    warn: Callable[[str], None] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """Mean squared per-sample gradient of every target (CDRA-SPT, Eq. 3).

    The model runs in ``eval()`` mode, so that dropout is off and batch norms do
    not mix samples, and is left exactly as it was found.

    Args:
        model: Any module. Weights may be frozen; no ``.grad`` is touched.
        batches: Batches, each whatever ``loss_fn`` takes.
        loss_fn: Called as ``loss_fn(model, batch)``. Returns the losses of the
            batch's samples ``[B]``, each depending on its own sample only, or
            ``(mean loss of the batch, B)`` where the loss is a plain mean. It is called again
            on the same batch where a weight turns out to be used in an unknown way, and on one of
            several samples after one of a single one.
        targets: Names to score. Default: `find_targets(model)`.
        statistic: ``'per_sample'`` (Eq. 3), or ``'per_batch'``: the mean over
            batches of the squared gradient of the batch's mean loss (SPT's
            released code); or ``'summed'``: the magnitude of the mean gradient (GPS's released
            code, which takes the sum).
        progress: Called after each batch with the number of samples so far.
        combine: For several processes that each score a share. Called once after the last batch
            as ``combine(sums, count)``: adds every process's `sums` up in place (one flat tensor,
            more only where the model lies on several devices) and returns the sum of their counts
            (of samples; of batches for ``per_batch``). A process may then have no batch.
        warn: Called with one line where parameters have to be scored one sample at a time.
            Default: ``warnings.warn``.
        dtype: Type that the scores are kept in: fp32, or bfloat16 for half the memory and 2 to 3
            digits (`score_sums` says how they are added up).
        device: Where they are kept, for example ``'cpu'``; default: where the weights are. Either
            one other than the default takes a scratch of one weight in fp32.

    Returns:
        Scores by target name, in the target's shape, all views of one tensor per device.

    Raises:
        ScoreError: If there is no batch, a loss or gradient is not finite, all gradients are
            zero, the type is unknown, or the model carries adapters; or, where the loss is the mean
            of several samples, a weight is used twice, in an unknown way, or on activations that
            are not ``[B, ...]``.
        PlanError: If a name does not fit the model.
    """
    if statistic not in STATISTICS:
        raise ScoreError(f'statistic={statistic!r}: expected one of {", ".join(STATISTICS)}')
    if statistic == 'summed':
        found = mean_gradients(
            model, batches, loss_fn, targets=targets, progress=progress, combine=combine,
            dtype=dtype, device=device,
        )  # fmt: skip
        for gradient in found.values():
            gradient.abs_()
        return found
    scored = ScoredParameters(model, targets)
    sums = ScoreSums(scored.unique, dtype, device)
    sink = SquareSink(statistic == 'per_sample', sums)

    scores = BatchScores(model, loss_fn, scored.unique, sink, warn or _warn)
    # An unknown use shows in its result, which requires grad.
    with evaluation_mode(model), scored.requiring_grad(), scores.ordinary:
        for batch in batches:
            scores.add(batch)
            if progress is not None:
                progress(scores.num_samples)
    count = scores.num_samples if sink.per_sample else scores.num_batches
    return scored.averaged(sums, count, combine, unit='samples' if sink.per_sample else 'batches')


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=6)  # where estimate_scores was called
