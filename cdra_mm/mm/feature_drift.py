"""How far the adapters have moved what the backbone gives: ||f' - f|| / ||f|| on a training batch.

The size of an update says little by itself: a small one in a direction that many tokens share moves
the features as far as a large one. So the backbone is run twice on the batch it was trained with
last, once as it is and once with all updates zero. Nothing of the run is changed by it: no mode, no
statistic, no random number, no parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.runner import Runner
from torch import Tensor, nn

from cdra_mm.core import adapters
from cdra_mm.core.adapters.entries import Entries
from cdra_mm.core.adapters.low_rank import LowRank
from cdra_mm.core.model.evaluation import evaluation_mode
from cdra_mm.core.model.own_state import tensors_in

from .host.model_patches import without_recomputation
from .planning.scoring_state import autocast, preserved_random_state

__all__ = ['FeatureDrift', 'without_updates']


@contextmanager
def without_updates(backbone: nn.Module) -> Iterator[None]:
    """The backbone with every low-rank update and every trained entry at zero, for a while."""
    factors = [
        adapter.up if isinstance(adapter, LowRank) else adapter.value
        for adapter in adapters(backbone).values()
        if isinstance(adapter, LowRank | Entries)
    ]
    kept = [factor.detach().clone() for factor in factors]
    try:
        for factor in factors:
            factor.data.zero_()
        yield
    finally:
        for factor, value in zip(factors, kept, strict=True):
            factor.data.copy_(value)


class FeatureDrift:
    """Measures the drift on the last batch that a backbone was given.

    Args:
        backbone: An adapted backbone. It keeps its last input alive until `close`.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self._inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._handle = backbone.register_forward_pre_hook(self._keep, with_kwargs=True)

    def close(self) -> None:
        """Lets the backbone go."""
        self._handle.remove()
        self._inputs = None

    @torch.no_grad()
    def measure(self, runner: Runner) -> float:
        """The drift, of several outputs that of the one that moved most; 0 without an input.

        Args:
            runner: Of the run, whose precision it is computed in.
        """
        if self._inputs is None:
            return 0.0
        args, kwargs = self._inputs
        model = self.backbone
        with (
            preserved_random_state(),
            evaluation_mode(model),
            without_recomputation(model),
            autocast(runner),
        ):
            moved = list(tensors_in(model(*args, **kwargs)))
            with without_updates(model):
                base = list(tensors_in(model(*args, **kwargs)))
        self._inputs = None  # what the second run was given is no training batch's
        drifts = [_distance(now, was) for now, was in zip(moved, base, strict=True)]
        return float(torch.stack(drifts).max()) if drifts else 0.0

    def _keep(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs = args, kwargs


def _distance(now: Tensor, was: Tensor) -> Tensor:
    """``||now - was|| / ||was||``; 0 where there was nothing."""
    now, was = now.float(), was.float()
    return torch.nan_to_num((now - was).norm() / was.norm(), nan=0.0, posinf=0.0)
