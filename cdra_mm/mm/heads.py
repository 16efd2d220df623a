"""Segmentation heads that mmseg lacks."""

from collections.abc import Sequence

from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from torch import Tensor

from .host.mmseg_names import OpenDecodeHead


@MODELS.register_module()
class LinearBNHead(OpenDecodeHead):
    """Batch norm and a 1x1 convolution: DINOv2's "linear" segmentation head.

    mmseg's ``FCNHead(num_convs=0)`` is the convolution alone. The norm is what lets one learning
    rate serve backbones whose tokens differ in size by orders of magnitude.

    Args:
        in_channels: Channels of the feature map, or of each one that is concatenated.
        norm_cfg: The norm layer. The default needs no process group; several GPUs with few images
            each may want ``dict(type='SyncBN')``.
        dropout_ratio: Channel dropout before the convolution.
        **kwargs: Passed on to mmseg's ``BaseDecodeHead`` (``num_classes``, ``in_index``,
            ``input_transform='resize_concat'`` for several layers, ``ignore_index``, ...).
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        *,
        norm_cfg: dict | None = None,
        dropout_ratio: float = 0.0,
        **kwargs,
    ) -> None:
        channels = in_channels if isinstance(in_channels, int) else sum(in_channels)
        super().__init__(
            in_channels,
            channels,
            norm_cfg=norm_cfg or dict(type='BN', requires_grad=True),
            dropout_ratio=dropout_ratio,
            **kwargs,
        )
        self.norm = build_norm_layer(self.norm_cfg, channels)[1]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Class scores of each patch, ``[B, num_classes, H / patch, W / patch]``."""
        return self.cls_seg(self.norm(self.chosen_features(inputs)))
