"""A DeiT-Tiny under a linear head, on squares held in memory: what short studies train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from statistics import fmean
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from cdra_mm.errors import DataError

from .small_tasks import IGNORED, Task

__all__ = [
    'PATCH',
    'SmallModel',
    'batches_of',
    'deit_tiny',
    'drawn_order',
    'fit_small_head',
    'sample_losses',
    'small_loss',
    'train_small',
    'validation_logits',
]

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PATCH = 16
LAST = 20  # losses at the end of a training that are averaged


def deit_tiny(weights: str, size: int) -> nn.Module:
    """A DeiT-Tiny that returns all tokens, its positions resampled to the size of the images.

    Args:
        weights: Its file, timm's names.
        size: Side of the images, pixels.
    """
    import timm
    from timm.layers import resample_abs_pos_embed

    vit: nn.Module = timm.create_model(
        'deit_tiny_patch16_224', num_classes=0, img_size=size, global_pool=''
    )
    state = {k: v for k, v in load_file(weights).items() if not k.startswith('head')}
    grid = [size // PATCH] * 2
    state['pos_embed'] = resample_abs_pos_embed(state['pos_embed'], grid, num_prefix_tokens=1)
    vit.load_state_dict(state)
    return vit


class SmallModel(nn.Module):
    """A ViT under a linear head, on the class token or on every patch."""

    def __init__(self, backbone: nn.Module, classes: int, dense: bool) -> None:
        super().__init__()
        self.backbone, self.dense = backbone, dense
        self.head = nn.Linear(cast(Any, backbone).embed_dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, ``[N, C]`` or ``[N, C, S, S]``, of uint8 images ``[N, 3, S, S]``."""
        return self.classify(self.features(images), images.shape[-1])

    def features(self, images: Tensor) -> Tensor:
        """What the head is given: the class token ``[N, D]``, or the patches ``[N, P, D]``."""
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (MEAN, STD))
        tokens = cast(Tensor, self.backbone((images.float() - mean) / std))
        return tokens[:, 1:] if self.dense else tokens[:, 0]

    def classify(self, features: Tensor, size: int) -> Tensor:
        """Logits of features, of images of this side."""
        if not self.dense:
            return cast(Tensor, self.head(features))
        side = size // PATCH
        maps = self.head(features).transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(maps, (size, size), mode='bilinear')


def small_loss(logits: Tensor, labels: Tensor, reduction: str = 'mean') -> Tensor:
    """Cross-entropy over what has a label."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction=reduction)


def sample_losses(model: SmallModel) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    """A loss function for `estimate_scores` and `mean_gradients`: that of each sample, ``[B]``."""

    def losses(_: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
        found = small_loss(model(given[0]), given[1], 'none')
        if not model.dense:
            return found
        known = (given[1] != IGNORED).flatten(1).sum(1)
        return found.flatten(1).sum(1) / known.clamp(min=1)

    return losses


def fit_small_head(
    model: SmallModel, task: Task, *, iterations: int, batch: int, rate: float, seed: int
) -> list[float]:
    """Trains the head on the features of the frozen backbone, which are computed once.

    Returns:
        The losses.
    """
    images, labels = task.train
    model.eval()
    with torch.no_grad():
        features = torch.cat([model.features(part) for part in images.split(32)])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=rate, weight_decay=1e-4)
    losses = []
    for step in range(iterations):
        for group in optimizer.param_groups:
            group['lr'] = rate * (1 - step / iterations)
        chosen = torch.randint(len(features), (batch,), generator=generator)
        loss = small_loss(model.classify(features[chosen], images.shape[-1]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def drawn_order(count: int, seed: int) -> tuple[Tensor, torch.Generator]:
    """The images of a training set in the order to score them, and what draws the batches."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator), generator


def train_small(
    model: SmallModel,
    images: Tensor,
    labels: Tensor,
    batches: Iterable[Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    after: Callable[[int], None] | None = None,
) -> float:
    """Trains on batches of indices, one step each; `after` is called with the step, from 0.

    Returns:
        The mean of the last losses.
    """
    model.train()
    losses: list[float] = []
    for step, indices in enumerate(batches):
        loss = small_loss(model(images[indices]), labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if after is not None:
            after(step)
        losses.append(float(loss.detach()))
    return fmean(losses[-LAST:])


@torch.no_grad()
def validation_logits(model: SmallModel, task: Task) -> Tensor:
    """What a model says of the validation images, in evaluation mode."""
    model.eval()
    return torch.cat([model(part) for part in task.val[0].split(32)])


def batches_of(
    count: int, batch: int, iterations: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Indices of shuffled passes over so many images, whole batches only.

    Raises:
        DataError: If there are fewer images than a batch.
    """
    if count < batch:
        raise DataError(f'{count} training images: expected at least a batch of {batch}')
    made = 0
    while made < iterations:
        for indices in torch.randperm(count, generator=generator).split(batch):
            if len(indices) == batch and made < iterations:
                yield indices
                made += 1
