"""Backbones that OpenMMLab lacks, for segmentors and classifiers alike.

================  ==========================================================
`TimmViT`         timm's plain transformers as dense backbones: ViT, DeiT,
                  DINOv2 with registers, DINOv3, EVA-02, BEiT
`MultiLayerViT`   mmpretrain's ViT with every returned layer normalised, as
                  DINOv2's multi-layer features are
================  ==========================================================

Written as ``type='cdra_mm.mm.backbones.TimmViT'`` in a config, no import is needed.
"""

from .multi_layer_vit import MultiLayerViT
from .timm_vit import TimmViT

__all__ = ['MultiLayerViT', 'TimmViT']
