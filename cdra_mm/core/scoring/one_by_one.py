"""Squared gradients one sample at a time: slow, and exact however a parameter is used.

For what `parameter_watch` cannot score in one pass. The batch's forward is shared; each
sample's loss is then differentiated alone, with ordinary autograd, so a batch costs up to B
backward passes. One gradient of each parameter is held at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cdra_mm.errors import ScoreError
from cdra_mm.spelling import first_of

from .score_sums import ScoreSums
from .squares import add_squared

__all__ = [
    'add_gradients',
    'add_squares_one_by_one',
    'all_finite',
    'gradient_not_finite',
    'named',
    'warning_of',
]

SHOWN = 3  # names and reasons in a message, of each


def add_squares_one_by_one(
    losses: Tensor, parameters: Mapping[str, nn.Parameter], sums: ScoreSums, first: int
) -> None:
    """Adds ``sum_b (dL_b / dW)^2`` of a batch for each parameter.

    Args:
        losses: The losses of the samples ``[B]``, their graph still there; it is freed.
        parameters: Parameters by name, used by ordinary operations.
        sums: Where the squares go.
        first: Position of the batch's first sample, for the message.

    Raises:
        ScoreError: If a gradient is not finite, naming the sample or, where it cannot be told
            which, those of the batch.
    """
    count = len(losses)
    names = list(parameters)

    def gradients(n: int, keep: bool) -> dict[str, Tensor | None]:
        found = torch.autograd.grad(
            losses[n], list(parameters.values()), retain_graph=keep, allow_unused=True
        )
        return dict(zip(names, found, strict=True))

    for n in range(count):
        own = gradients(n, n < count - 1)
        if not all_finite(own):
            # Through 0 * inf one sample's infinity is in the gradients of all.
            if n == 0 < count - 1 and not all_finite(gradients(1, False)):
                raise gradient_not_finite(first, first + count - 1)
            raise gradient_not_finite(first + n)
        add_gradients(own, sums)


def add_gradients(
    gradients: Mapping[str, Tensor | None],
    sums: ScoreSums,
    divisor: int = 1,
    *,
    squares: bool = True,
) -> None:
    """Adds the squares of ``gradients / divisor``, or these; a gradient that is None is zero."""
    for name, gradient in gradients.items():
        if gradient is not None:
            with sums.open(name) as total:
                own = gradient.to(total.dtype).div(divisor)
                if squares:
                    add_squared(total, own[None])
                else:
                    total.add_(own)


def all_finite(gradients: Mapping[str, Tensor | None]) -> bool:
    """Whether every gradient that is there is finite."""
    return all(bool(torch.isfinite(g).all()) for g in gradients.values() if g is not None)


def gradient_not_finite(first: int, last: int | None = None) -> ScoreError:
    """The error for a gradient that is not finite: of a sample, or of one among several."""
    alone = last is None or last == first
    which = f'sample {first}' if alone else f'one of the samples {first} to {last}'
    return ScoreError(
        f'the gradient of {which} is not finite: expected finite values; score in fp32 or bf16 and '
        + ('check that sample' if alone else 'check these samples'),
        sample=first if alone else None,
    )


def warning_of(reasons: Mapping[str, str], num_parameters: int) -> str:
    """What is said once of parameters that are scored in this way."""
    return (
        f'{len(reasons)} of {num_parameters} parameters cannot be scored in one pass and are '
        'scored one sample at a time, which is exact but takes up to one backward pass a sample: '
        + named(reasons)
    )


def named(reasons: Mapping[str, str]) -> str:
    """Names by their reason, the first few of each, and how many more there are."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    texts = []
    for reason, names in list(groups.items())[:SHOWN]:
        texts.append(f'{first_of(names, SHOWN)} ({reason})')
    left = sum(map(len, list(groups.values())[SHOWN:]))
    return '; '.join(texts) + (f'; and {left} more' if left else '')
