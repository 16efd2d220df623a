"""One setting of a benchmark: model, image size, batch, number type and device."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdra_mm.errors import ConfigError

__all__ = ['Batch', 'Case', 'build_narrow', 'build_vit', 'check_vit']

Batch = tuple[Tensor, Tensor]  # images [B, 3, S, S], labels [B]
TIMM_NAMES = {
    'ViT-Ti': 'vit_tiny_patch16_224',
    'ViT-S': 'vit_small_patch16_224',
    'ViT-B': 'vit_base_patch16_224',
    'ViT-L': 'vit_large_patch16_224',
}
NARROW = 96


def build_vit(name: str, image_size: int, **changes: Any) -> nn.Module:
    """A timm ViT of patch 16 with random weights, its head's too; see `check_vit`."""
    check_vit(image_size)
    import timm

    # nn.LayerNorm itself, which Opacus knows; timm's subclass computes the same.
    norm = partial(nn.LayerNorm, eps=1e-6)
    model: nn.Module = timm.create_model(
        TIMM_NAMES[name], img_size=image_size, norm_layer=norm, **changes
    )
    return model


def build_narrow(name: str, image_size: int) -> nn.Module:
    """The same with `NARROW` channels, which the heads of each ViT share evenly."""
    return build_vit(name, image_size, embed_dim=NARROW)


def check_vit(image_size: int) -> None:
    """Checks that `build_vit` can make models for images of this size.

    Raises:
        ConfigError: If timm is missing or the size is no multiple of the patch.
    """
    if importlib.util.find_spec('timm') is None:
        raise ConfigError('the benchmark needs timm: pip install timm')
    if image_size < 16 or image_size % 16:
        raise ConfigError(f'--image-size {image_size}: expected a multiple of 16, the patch size')


@dataclass(frozen=True)
class Case:
    """One setting.

    Attributes:
        model: Name for `build`.
        image_size: Side of the square images, pixels.
        batch: Images.
        dtype: ``'fp32'``, or ``'bf16'``: autocast over fp32 weights.
        device: ``'cpu'`` or ``'cuda'``.
        repeats: Rounds that count.
        warmup: Rounds before them.
        seed: Seed of the weights, images and orders.
        threads: Threads of PyTorch, None for its default.
        mode: How a training step runs: ``'eager'``, ``'compile'`` (the model by `torch.compile`)
            or ``'graph'`` (the whole step as one CUDA graph).
        build: Makes the model, ``build(name, image_size)``; its classifier is ``head``.
    """

    model: str = 'ViT-S'
    image_size: int = 224
    batch: int = 8
    dtype: str = 'fp32'
    device: str = 'cpu'
    repeats: int = 5
    warmup: int = 1
    seed: int = 0
    threads: int | None = None
    mode: str = 'eager'
    build: Callable[[str, int], nn.Module] = build_vit

    def describe(self) -> dict[str, Any]:
        """The setting as plain values, for the JSON file."""
        keys = ('model', 'image_size', 'batch', 'dtype', 'device', 'mode', 'repeats', 'warmup')
        return {key: getattr(self, key) for key in keys}

    def __str__(self) -> str:
        return (
            f'{self.model}, {self.image_size} px, batch {self.batch}, {self.dtype}, {self.device}'
        )

    def make_model(self) -> nn.Module:
        """A new model, always with the same weights, in evaluation mode."""
        if self.threads:
            torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)
        model = self.build(self.model, self.image_size).eval()
        head = model.get_submodule('head')
        # A head of small weights gives gradients that are all rounding error.
        nn.init.normal_(head.get_parameter('weight'), std=0.1)
        return model.to(self.device)

    def make_batch(self, num_classes: int = 10) -> Batch:
        """Random images and labels, always the same."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        side = self.image_size
        images = torch.randn(self.batch, 3, side, side, generator=generator)
        labels = torch.randint(num_classes, (self.batch,), generator=generator)
        return images.to(self.device), labels.to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """The number type of the forward."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == 'bf16')

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of each sample, ``[B]``."""
        images, labels = batch
        with self.autocast():
            logits = model(images)
        return F.cross_entropy(logits.float(), labels, reduction='none')
