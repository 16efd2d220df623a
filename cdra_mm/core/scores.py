"""Sensitivity of every competing entry (CDRA-SPT, Eq. 3).

    s_ij = 1/N sum_n ( dL_n / dW_ij )^2

One forward and one backward of a batch give the exact squares of all its
samples: `parameter_watch` puts an operation of `scored_ops` in the place of each
use of a competing parameter, whose backward adds the squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from .errors import ScoreError
from .evaluation import evaluation_mode
from .parameter_watch import ParameterWatch
from .scored_ops import SquareSink
from .targets import Target, find_targets, parameter_of, resolve, view_of

__all__ = ['STATISTICS', 'estimate_scores', 'require_finite']

STATISTICS = ('per_sample', 'per_batch')
LossFn = Callable[[nn.Module, Any], 'Tensor | tuple[Tensor, int]']
Combine = Callable[[Sequence[Tensor], int], int]
# Entries: sums begin where an allocation of their own would, at multiples of 256 bytes.
ALIGNMENT = 64


def estimate_scores(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    targets: Iterable[str] | None = None,
    statistic: str = 'per_sample',
    progress: Callable[[int], None] | None = None,
    combine: Combine | None = None,
) -> dict[str, Tensor]:
    """Mean squared per-sample gradient of every target (CDRA-SPT, Eq. 3).

    The model runs in ``eval()`` mode, so that dropout is off and batch norms do
    not mix samples, and is left exactly as it was found.

    Args:
        model: Any module. Weights may be frozen; no ``.grad`` is touched.
        batches: Batches, each whatever ``loss_fn`` takes.
        loss_fn: Called as ``loss_fn(model, batch)``. Returns the losses of the
            batch's samples ``[B]``, each depending on its own sample only, or
            ``(mean loss of the batch, B)`` where the loss is a plain mean.
            Inputs of scored layers must have the sample as their first
            dimension (``[B, ...]``, or ``[B * windows, ...]``).
        targets: Names to score. Default: `find_targets(model)`.
        statistic: ``'per_sample'`` (Eq. 3), or ``'per_batch'``: the mean over
            batches of the squared gradient of the batch's mean loss (SPT's
            released code).
        progress: Called after each batch with the number of samples so far.
        combine: For several processes that each score a share. Called once after the last batch
            as ``combine(sums, count)``: adds every process's `sums` up in place (one flat tensor,
            more only where the model lies on several devices) and returns the sum of their counts
            (of samples; of batches for ``per_batch``). A process may then have no batch.

    Returns:
        fp32 scores by target name, in the target's shape, all views of one tensor per device.

    Raises:
        ScoreError: If there is no batch, a loss or gradient is not finite, all
            gradients are zero, or a weight is used twice or in an unknown way.
        PlanError: If a name does not fit the model.
    """
    if statistic not in STATISTICS:
        raise ScoreError(f'statistic={statistic!r}: expected one of {", ".join(STATISTICS)}')
    if targets is None:
        chosen = find_targets(model)
    else:
        chosen = {name: resolve(model, name) for name in targets}
    sink = SquareSink(statistic == 'per_sample')
    parameters = {target.path: parameter_of(model, target) for target in chosen.values()}
    names = {id(parameter): path for path, parameter in parameters.items()}
    sink.sums, flat = _zero_sums(parameters)

    samples = num_batches = 0
    watch = ParameterWatch(names, sink)
    with evaluation_mode(model), _requiring_grad(list(parameters.values())):
        for batch in batches:
            samples += _score_batch(model, batch, loss_fn, watch, samples)
            num_batches += 1
            if progress is not None:
                progress(samples)
    count = samples if sink.per_sample else num_batches
    if combine is not None:
        count = combine(flat, count)
    if not count:
        raise ScoreError('no sample to score: `batches` is empty; give at least one batch')

    for total in flat:
        total.div_(count)
    if not any(bool(total.any()) for total in flat):
        unit = 'samples' if sink.per_sample else 'batches'
        raise ScoreError(
            f'the gradients of all {len(chosen)} targets are exactly zero over {count} {unit}: '
            'the loss does not depend on the backbone. Is the last layer of the head all zeros, '
            'or is the backbone run under no_grad?'
        )
    return {name: _score_of(sink, target) for name, target in chosen.items()}


def _zero_sums(
    parameters: Mapping[str, nn.Parameter],
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """fp32 zeros in the shape of each parameter, cut from one flat tensor per device.

    So that processes add theirs up with one call and without a copy of what may be 1.1 G entries.
    """
    lengths: dict[torch.device, int] = {}
    begins: dict[str, int] = {}
    for path, parameter in parameters.items():
        begins[path] = lengths.get(parameter.device, 0)
        padded = -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        lengths[parameter.device] = begins[path] + padded
    flat = {device: torch.zeros(length, device=device) for device, length in lengths.items()}
    sums = {
        path: flat[p.device][begins[path] : begins[path] + p.numel()].view(p.shape)
        for path, p in parameters.items()
    }
    return sums, list(flat.values())


def _score_of(sink: SquareSink, target: Target) -> Tensor:
    return view_of(target, sink.sums[target.path])


def _score_batch(
    model: nn.Module, batch: Any, loss_fn: LossFn, watch: ParameterWatch, first: int
) -> int:
    sink = watch.sink
    watch.begin()
    with torch.enable_grad():
        with watch:
            losses = loss_fn(model, batch)
        losses, size = _checked_losses(losses)
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
        sink.batch_size, sink.finite = size, None
        if losses.requires_grad:
            # Only what lies between the loss and the scored layers is computed: no gradient of
            # any other parameter.
            try:
                torch.autograd.grad(losses.sum(), [watch.anchor], allow_unused=True)
            except CheckpointError as error:
                raise ScoreError(
                    'activation checkpointing runs the forward again where its weights cannot be '
                    'watched: switch it off while scoring'
                ) from error
    if sink.finite is not None and not bool(sink.finite.all()):
        index = first + int(torch.nonzero(~sink.finite)[0])
        raise ScoreError(
            f'the gradient of sample {index} is not finite: expected finite values; score in fp32 '
            'or bf16 and check that sample',
            sample=index,
        )
    return size


def require_finite(model: nn.Module) -> None:
    """Raises ScoreError where a weight is not finite: no sample is at fault then."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ScoreError(
                f'{name} holds values that are not finite, so no loss is: the pretrained weights '
                'are damaged, or come from a training that diverged; load others'
            )


def _checked_losses(losses: Any) -> tuple[Tensor, int]:
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


@contextmanager
def _requiring_grad(parameters: list[nn.Parameter]) -> Iterator[None]:
    """An unknown use of a weight shows in a result that requires grad: so must the weight."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
