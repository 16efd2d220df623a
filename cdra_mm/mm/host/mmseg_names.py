"""Classes of mmseg with a step opened to ours; importing it loads mmseg."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmseg.apis import MMSegInferencer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from .known_names import require

__all__ = ['LoadingInferencer', 'OpenDecodeHead']

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


class OpenDecodeHead(BaseDecodeHead):
    """mmseg's base of heads, which says what of the backbone's features a head takes."""

    def chosen_features(self, inputs: Sequence[Tensor]) -> Tensor:
        """The features that ``in_index`` and ``input_transform`` choose, ``[B, C, H, W]``."""
        found: Tensor = self._transform_inputs(inputs)
        return found
