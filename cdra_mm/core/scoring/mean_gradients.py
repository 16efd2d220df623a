"""The mean gradient of the loss over training samples, of every target.

    G = 1/N sum_n dL_n / dW

Where Eq. 3 averages the squares, this averages the gradients themselves: what the samples agree
on. It needs no watch over single samples: ordinary backward passes, one a batch, whatever the
operations of the model are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from cdra_mm.errors import ScoreError

from ..model.evaluation import evaluation_mode
from ..model.graph import nodes_of
from .losses import LossFn, finite_losses
from .one_by_one import gradient_not_finite
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
    with evaluation_mode(model), scored.requiring_grad(), _Collected(scored, sums) as collected:
        for batch in batches:
            with torch.enable_grad():
                losses, size = finite_losses(model, loss_fn(model, batch), count)
                if losses.requires_grad and scored.unique:
                    if not count:
                        _require_one_graph(losses)
                    torch.autograd.backward(losses.sum(), inputs=list(scored.unique.values()))
            if not collected.are_finite():
                raise gradient_not_finite(count, count + size - 1)
            count += size
            if progress is not None:
                progress(count)
    return scored.averaged(sums, count, combine, what='mean gradients')


def _require_one_graph(losses: Tensor) -> None:
    """Refuses a reentrant checkpoint, whose weights are in a graph that is not there yet.

    A backward pass to named inputs does not enter it, and their gradients would be zero.
    """
    if any(getattr(node, '_forward_cls', None) is CheckpointFunction for node in nodes_of(losses)):
        raise ScoreError(
            'reentrant activation checkpointing hides its weights from the gradients: switch it '
            'off while scoring, or give use_reentrant=False'
        )


class _Collected:
    """Each gradient goes into the sums as it arrives, and is gone."""

    def __init__(self, scored: ScoredParameters, sums: ScoreSums) -> None:
        self.parameters, self.sums = scored.unique, sums
        self._finite: list[Tensor] = []

    def __enter__(self) -> _Collected:
        self._before = {name: parameter.grad for name, parameter in self.parameters.items()}
        for parameter in self.parameters.values():
            parameter.grad = None
        self._handles = [
            cast(Any, parameter).register_post_accumulate_grad_hook(self._adder(name))
            for name, parameter in self.parameters.items()
        ]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        for name, parameter in self.parameters.items():
            parameter.grad = self._before[name]

    def are_finite(self) -> bool:
        """Whether all were that have arrived since this was asked last."""
        found, self._finite = self._finite, []
        return all(bool(finite) for finite in found)

    def _adder(self, name: str) -> Callable[[Tensor], None]:
        def add(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            if gradient.numel():  # its extremes are NaN if any entry is: a tenth of isfinite's time
                self._finite.append(torch.stack(gradient.aminmax()).isfinite().all())
            with self.sums.open(name) as total:
                total += gradient

        return add
