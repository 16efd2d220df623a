"""Classes of mmpretrain with a step opened to ours; importing it loads mmpretrain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer
from mmpretrain.engine.hooks import VisualizationHook
from mmpretrain.models import VisionTransformer
from torch import Tensor, nn

from .known_names import require

__all__ = [
    'OpenVisionTransformer',
    'OpenVisualizationHook',
    'classes_of',
    'inferencer_of',
    'set_classes',
]

require('mmpretrain')


class OpenVisionTransformer(VisionTransformer):
    """mmpretrain's, with a step before the tokens of a layer become what it returns."""

    def before_output(self, x: Tensor) -> Tensor:
        """Changes the tokens of a layer that is returned, ``[B, N, E]``."""
        return x

    def _format_output(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        return super()._format_output(self.before_output(x), hw)


class OpenVisualizationHook(VisualizationHook):
    """mmpretrain's, which paints a single image on demand."""

    def paint(self, image: Tensor, sample: Any, position: int) -> None:
        """Paints an image ``[C, H, W]``.

        Args:
            image: As it was predicted.
            sample: Its prediction.
            position: A number that its picture's name ends with.
        """
        self._draw_samples(0, {'inputs': [image]}, [sample], step=position)


def inferencer_of(model: nn.Module, config: Config, device: str) -> Any:
    """The inferencer of a classifier that is built and loaded, without class names."""
    model._config = config
    return ImageClassificationInferencer(model, pretrained=False, device=device, classes=[])


def classes_of(inferencer: Any) -> Sequence[str]:
    """The class names that an inferencer uses."""
    found: Sequence[str] = inferencer.classes
    return found


def set_classes(inferencer: Any, names: Sequence[str]) -> None:
    """Gives an inferencer its class names."""
    inferencer.classes = list(names)
