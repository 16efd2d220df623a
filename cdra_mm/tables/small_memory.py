"""What a training forgets of what the backbone was pretrained for."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cdra_mm.benchmark.small_training import SmallModel

__all__ = ['Remembered']


class Remembered:
    """Photographs, and what the pretrained backbone under its own head calls them.

    Args:
        backbone: As it was pretrained, for images of their size; it stays as it is.
        weights: File that holds ``head.weight`` and ``head.bias``, of any floating-point type.
        images: uint8 ``[N, 3, S, S]``.
    """

    def __init__(self, backbone: nn.Module, weights: str, images: Tensor) -> None:
        state = load_file(weights)
        # Files of weights are often in half precision; a backbone takes them into its own type.
        weight, bias = (state[f'head.{name}'].float() for name in ('weight', 'bias'))
        self._head = weight.to(images.device), bias.to(images.device)
        self._images = images
        self._model = SmallModel(backbone, 1, False)
        self._called = self._calls(backbone)

    @torch.no_grad()
    def _calls(self, backbone: nn.Module) -> Tensor:
        self._model.backbone = backbone
        self._model.eval()
        found = [self._model.features(part) for part in self._images.split(32)]
        return nn.functional.linear(torch.cat(found), *self._head).argmax(1)

    def kept(self, backbone: nn.Module) -> float:
        """Share of the photographs that are called what they were called, percent."""
        return 100 * float((self._calls(backbone) == self._called).float().mean())
