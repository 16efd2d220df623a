"""A class of mmseg with a step opened to ours; importing it loads mmseg."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmseg.apis import MMSegInferencer
from torch import nn

from .known_names import require

__all__ = ['LoadingInferencer']

require('mmseg')


class LoadingInferencer(MMSegInferencer):
    """mmseg's inferencer, whose checkpoint is loaded by a function that is given.

    Args:
        *args: See ``MMSegInferencer``.
        load: Gets the model, what the checkpoint file holds and the config; sets
            ``model.dataset_meta`` too.
        **kwargs: See ``MMSegInferencer``.
    """

    def __init__(
        self, *args: Any, load: Callable[[nn.Module, Any, Any], None], **kwargs: Any
    ) -> None:
        self.load = load
        super().__init__(*args, **kwargs)

    def _load_weights_to_model(self, model: nn.Module, checkpoint: Any, cfg: Any) -> None:
        self.load(model, checkpoint, cfg)
