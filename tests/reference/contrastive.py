"""The supervised contrastive loss, one anchor, one positive, one other at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def supervised_contrastive(features: Tensor, labels: list[int], temperature: float) -> Tensor:
    """Khosla et al. (NeurIPS 2020), Eq. 2, averaged over the anchors; differentiable."""
    unit = [row / row.square().sum().sqrt() for row in features]
    total = torch.zeros((), dtype=features.dtype)
    for i, anchor in enumerate(unit):
        others = [j for j in range(len(unit)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        below = sum(torch.exp((anchor * unit[a]).sum() / temperature) for a in others)
        for p in positives:
            share = torch.exp((anchor * unit[p]).sum() / temperature) / below
            total = total - torch.log(share) / len(positives)
    return total / len(unit)
