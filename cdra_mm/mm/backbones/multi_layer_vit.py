"""mmpretrain's ViT, its layers normalised as DINOv2's features are."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from torch import Tensor

from cdra_mm.errors import ConfigError

from ..host.mmpretrain_names import OpenVisionTransformer

__all__ = ['MultiLayerViT']


@MODELS.register_module()
class MultiLayerViT(OpenVisionTransformer):
    """A VisionTransformer whose returned layers all pass through the final norm.

    mmpretrain normalises the last layer only. DINOv2's ``get_intermediate_layers``
    (``norm=True``, its default) applies the one final norm to each layer that it
    returns, and its segmentation heads were trained on that. The weights bear the
    same names, so the same checkpoints load, by `init_cfg` or converted.

    Args:
        *args: As for mmpretrain's ``VisionTransformer``.
        **kwargs: Likewise. For DINOv2 ViT-B/14: ``arch='base', patch_size=14,
            img_size=518, layer_scale_init_value=1e-5, out_type='featmap',
            out_indices=[8, 9, 10, 11]``.

    Raises:
        ConfigError: With ``final_norm=False``.
    """

    final_norm: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.final_norm:
            raise ConfigError(
                'MultiLayerViT with final_norm=False has no norm to apply: leave that setting out, '
                'or use mmpretrain.VisionTransformer'
            )
        # Applied to what is returned instead of inside the loop over layers.
        self.final_norm = False

    def before_output(self, x: Tensor) -> Tensor:
        """The tokens of a returned layer through the final norm, ``[B, N, E]``."""
        normed: Tensor = self.ln1(x)
        return normed
