"""One global top-k by sorting a Python list."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def top_k(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks of the ``count`` highest scores; ties by tensor in order, then by flat index."""
    entries = []
    for order, (name, tensor) in enumerate(scores.items()):
        for index, value in enumerate(tensor.flatten().tolist()):
            entries.append((-value, order, index, name))
    masks = {name: torch.zeros(t.numel(), dtype=torch.bool) for name, t in scores.items()}
    for _, _, index, name in sorted(entries)[:count]:
        masks[name][index] = True
    return {name: mask.reshape(scores[name].shape) for name, mask in masks.items()}
