"""Eq. 3 one sample at a time, by autograd over whole parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

PARTS = {
    'q': (0, 3),
    'k': (1, 3),
    'v': (2, 3),
    'w1': (0, 2),
    'w2': (1, 2),
    'qkv': (0, 1),
    'kv': (0, 1),
}
"""Part of a fused weight: its place among how many equal slices of the output rows."""

Batch = tuple[Tensor, Tensor]


def view(tensor: Tensor, name: str) -> Tensor:
    """The slice of a parameter's tensor that a target's name stands for."""
    if ':' not in name:
        return tensor
    path, part = name.split(':')
    place, count = PARTS[part]
    if '.kv.' in path and count == 3:  # keys and values alone
        place, count = place - 1, 2
    size = tensor.shape[0] // count
    return tensor[place * size : (place + 1) * size]


def gradients_of(model: nn.Module, loss: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Gradient of one loss for each named target, fp64; an unused parameter's is zero."""
    parameters = dict(model.named_parameters())
    paths = sorted({name.split(':')[0] for name in names})
    tensors = [parameters[path] for path in paths]
    gradients = dict(zip(paths, torch.autograd.grad(loss, tensors, allow_unused=True), strict=True))
    found = {}
    for name in names:
        path = name.split(':')[0]
        gradient = gradients[path]
        if gradient is None:
            gradient = torch.zeros_like(parameters[path])
        found[name] = view(gradient.double(), name)
    return found


def mean_squares(
    model: nn.Module,
    batches: Iterable[Batch],
    losses: Callable[[nn.Module, Batch], Tensor],
    names: Iterable[str],
) -> dict[str, Tensor]:
    """Mean over ``batches`` of the squared gradient of each batch's mean loss.

    With batches of one sample this is Eq. 3; with larger ones the ``'per_batch'`` statistic.
    """
    model = copy.deepcopy(model).eval().requires_grad_(True)
    names = list(names)
    total: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        own = gradients_of(model, losses(model, batch).mean(), names)
        total = {name: total.get(name, 0) + value**2 for name, value in own.items()}
        count += 1
    return {name: value / count for name, value in total.items()}


def magnitude_of_mean(
    model: nn.Module,
    batches: Iterable[Batch],
    losses: Callable[[nn.Module, Batch], Tensor],
    names: Iterable[str],
) -> dict[str, Tensor]:
    """Magnitude of the mean over all samples of their gradients."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    mean = torch.cat([losses(model, batch) for batch in batches]).mean()
    return {name: g.abs() for name, g in gradients_of(model, mean, list(names)).items()}


def one_by_one(batches: Iterable[Batch]) -> list[Batch]:
    """The same samples in batches of one."""
    return [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(y))]


def add_squares(total: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    """``total + sum_b (grad[b]^T x[b])^2``, one sample and one token at a time, fp64."""
    total = total.double()
    for x_b, grad_b in zip(x.double(), grad.double(), strict=True):
        gradient = torch.zeros_like(total)
        for x_bt, grad_bt in zip(x_b, grad_b, strict=True):
            gradient += torch.outer(grad_bt, x_bt)
        total = total + gradient**2
    return total
