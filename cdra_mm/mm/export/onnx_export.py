"""A merged model as an ONNX file, run once by onnxruntime to prove that nothing changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from cdra_mm.errors import CDRAError, CheckpointError, ConfigError
from cdra_mm.onnx_files.writing import (
    add_metadata,
    first_line,
    onnx_message,
    refuse_large,
    runtime,
)
from cdra_mm.storage import write_atomically

__all__ = ['export_onnx']

INPUT, OUTPUT = 'images', 'logits'
RGB = 3  # channels
# The two libraries add up in different orders: this share of the largest output.
TOLERANCE = 1e-4
# What a segmentor's head may ask of an image beside its pixels.
SHAPES = ('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape')
BATCHES = (2, 1, 3)  # exported with the first; the others prove that the size is free


class _Logits(nn.Module):
    """Normalised images ``[B, C, H, W]`` to logits: of a class, or of every pixel."""

    def __init__(self, model: BaseModel, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> Tensor:
        """``[B, classes]``, or ``[B, classes, H, W]`` of a segmentor."""
        if hasattr(self.model, 'encode_decode'):
            shapes = dict.fromkeys(SHAPES, self.size)
            logits = self.model.encode_decode(images, [shapes])
        else:
            logits = self.model(images, mode='tensor')
        if not isinstance(logits, Tensor):
            raise ConfigError(
                f'{type(self.model).__name__} gives a {type(logits).__name__}: only models that '
                'give one tensor of logits are exported'
            )
        return logits


def export_onnx(
    model: nn.Module, path: str | Path, shape: tuple[int, int, int], metadata: Mapping[str, Any]
) -> float:
    """Writes the ONNX file of a plain segmentor or classifier.

    The input is ``images [B, C, H, W]``, normalised as the data preprocessor of the model does it
    (kept in the file's metadata), the output ``logits``: ``[B, classes]``, or ``[B, classes, H,
    W]`` of a segmentor. B is free, H and W are not. No path of this machine is in the file.

    Args:
        model: The plain model, without adapters.
        path: The file.
        shape: Channels, H and W, pixels.
        metadata: What to keep in the file, as JSON texts.

    Returns:
        Largest difference of an output of onnxruntime, as a share of the largest output.

    Raises:
        ConfigError: If the packages of the extra ``export`` are missing, the size does not fit, or
            torch cannot trace the model.
        CheckpointError: If the file cannot be written, or gives other outputs.
    """
    onnxruntime = runtime()
    refuse_large(model)
    module = _Logits(model, shape[1:]).eval()
    images = torch.randn(BATCHES[0], *shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            module(images)
    except CDRAError:
        raise
    except Exception as error:  # any model may be handed in
        channels, height, width = shape
        raise ConfigError(
            f'{type(model).__name__} cannot be called on {channels} x {height} x {width} images '
            f'alone ({first_line(error)}): name another --shape; a model whose head asks for more '
            'than images is not exported'
        ) from None
    proto = onnx_message(
        module,
        [images],
        [INPUT],
        [OUTPUT],
        {'images': {0: torch.export.Dim('batch', min=1)}},
        what=type(model).__name__,
        hint='--format merged works without tracing',
    )
    texts = {**_normalisation(model, shape[0]), **metadata}
    add_metadata(proto, {key: json.dumps(value) for key, value in texts.items()})
    content = proto.SerializeToString()
    difference = max(_difference(onnxruntime, content, module, count, shape) for count in BATCHES)
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f'onnxruntime gives other outputs than the model (a share of {difference:.3g} of the '
            'largest): nothing was written; please report this with the config'
        )
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(content))
    return difference


@torch.no_grad()
def _difference(
    runtime: Any, content: bytes, module: nn.Module, count: int, shape: tuple[int, int, int]
) -> float:
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))
    session = runtime.InferenceSession(content, providers=['CPUExecutionProvider'])
    (actual,) = session.run([OUTPUT], {INPUT: images.numpy()})
    expected = module(images)
    scale = float(expected.abs().max()) or 1.0  # a head that starts at zero
    return float((expected - torch.from_numpy(actual)).abs().max()) / scale


def _normalisation(model: nn.Module, channels: int) -> dict[str, Any]:
    """What has to be done to an image first."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    found: dict[str, Any] = {}
    for key in ('mean', 'std'):
        value = getattr(preprocessor, key, None)
        if isinstance(value, Tensor):
            found[key] = value.flatten().tolist()
    if channels == RGB:  # other images have no order that OpenCV would turn round
        swapped = getattr(
            preprocessor, 'channel_conversion', getattr(preprocessor, 'to_rgb', False)
        )
        found['channels'] = 'RGB' if swapped else 'BGR'
    return found
