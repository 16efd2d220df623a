"""What a model gives for one random image, and whether another gives the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.core.model.own_state import tensors_in
from cdra_mm.errors import CheckpointError, ConfigError
from cdra_mm.onnx_files.writing import first_line

__all__ = ['Outputs', 'difference', 'image_size', 'outputs_of', 'random_image']

DEFAULT_SIZE = (224, 224)
CHANNELS = 3  # of a model that has neither a convolution nor a mean to tell


@dataclass(frozen=True)
class Outputs:
    """What a model gave.

    Attributes:
        tensors: Its floating-point outputs, or features.
        kind: ``'output'`` of the whole model, or ``'feature'`` of backbone and neck.
        why: Why it is features, '' where it is not.
    """

    tensors: Sequence[Tensor]
    kind: str
    why: str = ''


def image_size(model: Mapping[str, Any], backbone: nn.Module) -> tuple[int, int]:
    """Height and width that the model of a config was made for, pixels."""
    asked = (model.get('backbone') or {}).get('img_size')
    preprocessor = model.get('data_preprocessor') or {}
    for size in (getattr(backbone, 'img_size', None), asked, preprocessor.get('size')):
        if size:
            return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return DEFAULT_SIZE


def random_image(model: nn.Module, size: tuple[int, int]) -> Tensor:
    """A random image that the backbone of a model takes, ``[1, C, H, W]``.

    Args:
        model: The whole model, in evaluation mode.
        size: H and W, pixels.

    Raises:
        ConfigError: If it takes none of that size.
    """
    reasons = []
    for channels in _channels(model):
        image = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
        try:
            _features(model, image)
        except Exception as error:  # any backbone may be handed in
            reasons.append(f'{channels} channels: {first_line(error)}')
        else:
            return image
    raise ConfigError(
        f'{type(model).__name__} takes no image of {size[0]} x {size[1]} pixels '
        f'({"; ".join(reasons)}): the backbone was made for other images; set its img_size'
    )


def outputs_of(model: nn.Module, image: Tensor, kind: str = '') -> Outputs:
    """What a model gives for normalised images.

    The features are taken where the whole model cannot be called on images alone, as a head that
    asks for data samples cannot, and where all of its outputs are zero.

    Args:
        model: The model; it is put into evaluation mode.
        image: ``[B, C, H, W]``.
        kind: ``'output'`` or ``'feature'``: what to take; '' to choose.
    """
    model.eval()
    why = ''
    if kind != 'feature':
        try:
            tensors = _run(lambda: model(image, mode='tensor'))
        except Exception as error:  # any head may be handed in
            if kind:
                raise
            why = f'the model cannot be called on an image alone ({first_line(error)})'
        else:
            if kind or any(bool(tensor.any()) for tensor in tensors):
                return Outputs(tensors, 'output')
            why = 'all outputs of the model are zero'
    return Outputs(_features(model, image), 'feature', why)


def difference(before: Outputs, after: Outputs) -> tuple[float, float]:
    """The largest difference of two models' outputs, and the size of that output.

    Each output is measured by its own size: a small one is not excused by a large one.

    Returns:
        Largest absolute difference and largest absolute value of the output whose share is worst.

    Raises:
        CheckpointError: If an output is not a number.
    """
    worst, found = -1.0, (0.0, 0.0)
    for x, y in zip(before.tensors, after.tensors, strict=True):
        if bool(x.isnan().any()):
            raise CheckpointError(
                'the model with adapters gives NaN for a random image: its training has diverged; '
                'take an earlier checkpoint'
            )
        same = (x == y) & x.isinf()  # masks of attention are -inf
        distance = torch.where(same, 0.0, (x - y).abs().double())
        scale = float(torch.where(x.isinf(), 0.0, x.abs().double()).amax()) if x.numel() else 0.0
        largest = float(distance.amax()) if x.numel() else 0.0
        share = largest / scale if scale else largest
        if not share <= worst:  # also where it is NaN
            worst, found = share, (largest, scale)
    return found


def _channels(model: nn.Module) -> list[int]:
    """How many channels the images may have, the likeliest first."""
    backbone = getattr(model, 'backbone', model)
    convolutions = (m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    found = [convolution.in_channels for convolution in convolutions][:1]
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    if isinstance(mean, Tensor):
        found.append(mean.numel())
    return list(dict.fromkeys([*found, CHANNELS]))


def _features(model: nn.Module, image: Tensor) -> list[Tensor]:
    # A whole model may do something to the images before its backbone sees them.
    extract: Any = getattr(model, 'extract_feat', None) or getattr(model, 'backbone', model)
    return _run(lambda: extract(image))


@torch.no_grad()
def _run(call: Any) -> list[Tensor]:
    """The floating-point tensors of a call, with the random numbers of a fixed seed."""
    with torch.random.fork_rng():  # a model may draw some also in evaluation mode
        torch.manual_seed(0)
        return [tensor for tensor in tensors_in(call()) if tensor.is_floating_point()]
