"""What a pass takes as losses: those of the samples of a batch, or their mean and number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.errors import ScoreError

__all__ = ['LossFn', 'finite_losses', 'require_finite']

LossFn = Callable[[nn.Module, Any], 'Tensor | tuple[Tensor, int]']


def finite_losses(model: nn.Module, returned: Any, first: int) -> tuple[Tensor, int]:
    """The losses of a batch that are to be added up, checked.

    Args:
        model: The model that they are of.
        returned: What a `LossFn` has returned.
        first: Number of the batch's first sample, for messages.

    Returns:
        Losses ``[B]`` or ``[1]``, and B.

    Raises:
        ScoreError: If they are no losses, or one is not finite.
    """
    losses, size = _checked(returned)
    bad = torch.nonzero(~torch.isfinite(losses.detach())).flatten().tolist()
    if bad:
        require_finite(model)
        index = first + bad[0]
        raise ScoreError(
            f'the loss of sample {index} is {losses[bad[0]].item()}'
            + (f' (batch of {size})' if losses.numel() != size else '')
            + ': expected a finite value; check that image and its labels',
            sample=index,
        )
    return losses, size


def require_finite(model: nn.Module) -> None:
    """Raises ScoreError where a weight is not finite: no sample is at fault then."""
    for name, parameter in model.named_parameters():
        # What is not finite shows in the sum, which is ten times as fast; so may large values.
        if not bool(parameter.detach().sum().isfinite() or parameter.isfinite().all()):
            raise ScoreError(
                f'{name} holds values that are not finite, so no loss is: the pretrained weights '
                'are damaged, or come from a training that diverged; load others'
            )


def _checked(losses: Any) -> tuple[Tensor, int]:
    """The losses to add up, ``[B]`` or ``[1]``, and B."""
    size = None
    if isinstance(losses, tuple) and len(losses) == 2:
        mean, size = losses
        is_count = isinstance(size, int) and size > 0
        if is_count and isinstance(mean, Tensor) and mean.numel() == 1:
            return mean.reshape(1) * size, size
    elif isinstance(losses, Tensor) and losses.dim() == 1 and len(losses):
        return losses, len(losses)
    shape = tuple(losses.shape) if isinstance(losses, Tensor) else repr(losses)[:60]
    raise ScoreError(
        f'loss_fn returned a {type(losses).__name__} ({shape}): expected the losses of the samples '
        '[B], or (mean loss, B), with at least one sample'
    )
