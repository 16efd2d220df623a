"""A batch whose features are computed once: what a frozen backbone makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cdra_mm.core.model.own_state import tensors_in

from ..host.model_patches import with_forward

__all__ = ['HeldBatch']


class HeldBatch:
    """A batch as the model's loss takes it, and what the backbone's forward makes of its images.

    That runs within the first loss of the batch, however often the loss calls it and with
    whatever; later losses are given the same features. It runs every time where that would be
    something else: where somebody's hooks look into the backbone, or a loss changes its features.
    """

    def __init__(self, inputs: Any, samples: Any) -> None:
        self.inputs, self.samples = inputs, samples
        self.features: list[Any] = []
        self._versions: list[int] = []

    @property
    def size(self) -> int:
        """Bytes."""
        held = [*tensors_in(self.features), *tensors_in(self.inputs)]
        held += [t for sample in self.samples for t in tensors_in(sample.to_dict())]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    @contextmanager
    def frozen(self, backbone: nn.Module) -> Iterator[None]:
        """The backbone gives the features of this batch, without gradients."""
        plain, known = backbone.forward, iter([*self.features])

        def forward(*args: Any, **kwargs: Any) -> Any:
            for features in known:
                return features
            with torch.no_grad():
                self.features.append(plain(*args, **kwargs))
            self._versions += _versions(self.features[-1])
            return self.features[-1]

        with with_forward(backbone, forward):
            yield
        looked_into = any(module._forward_hooks for module in backbone.modules())
        if looked_into or self._versions != _versions(self.features):
            self.features, self._versions = [], []


def _versions(features: Any) -> list[int]:
    """Grow where a tensor is changed in place."""
    return [tensor._version for tensor in tensors_in(features)]
