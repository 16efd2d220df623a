"""Slow, obvious: mean gradients sample by sample, and the best purchase by trying everything."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor


def mean_gradient(model, samples, loss_fn, targets, view):
    """The mean over samples of the gradient of each alone, fp64 by target name."""
    model.eval()
    total: dict[str, Tensor] = {}
    for sample in samples:
        model.zero_grad()
        loss_fn(model, sample).sum().backward()
        for name, target in targets.items():
            grad = model.get_parameter(target.path).grad
            own = view(target, torch.zeros_like(model.get_parameter(target.path)))
            own = own if grad is None else view(target, grad)
            total[name] = total.get(name, 0) + own.double().clone()
    model.zero_grad()
    return {name: grads / len(samples) for name, grads in total.items()}


def gain(gradient, rank, currency):
    """What a block of a rank, or a vector, gains."""
    gradient = gradient.double()
    if gradient.dim() == 1:
        return float(gradient.square().sum() if currency == 'energy' else gradient.abs().sum())
    u, s, _ = torch.linalg.svd(gradient, full_matrices=False)
    if currency == 'energy':
        return float(s[:rank].square().sum())
    return float((u[:, :rank] * s[:rank]).abs().sum()) / 3**0.5


def offers(gradient, sides, max_rank, currency):
    """Every (price, gain) that a target has, (0, 0) too."""
    if gradient.dim() == 1:
        return [(0, 0.0), (len(gradient), gain(gradient, 0, currency))]
    found = [(0, 0.0)]
    row_order = sorted(range(len(gradient)), key=lambda i: -float(gradient[i].square().sum()))
    col_order = sorted(
        range(gradient.shape[1]), key=lambda j: -float(gradient[:, j].square().sum())
    )
    for share_r, share_c in product(sides, sides):
        rows = row_order[: max(1, round(len(row_order) * share_r))]
        cols = col_order[: max(1, round(len(col_order) * share_c))]
        part = gradient[rows][:, cols]
        for rank in range(1, min(max_rank, *part.shape) + 1):
            found.append((rank * (len(rows) + len(cols)), gain(part, rank, currency)))
    return found


def best_gain(all_offers, budget):
    """The largest gain that any choice of one offer a target buys within a budget."""
    best = {0: 0.0}  # what is spent -> gain
    for own in all_offers:
        new: dict[int, float] = {}
        for (spent, gain), (price, more) in product(best.items(), own):
            if spent + price <= budget:
                key = spent + price
                new[key] = max(new.get(key, -1.0), gain + more)
        best = new
    return max(best.values())
