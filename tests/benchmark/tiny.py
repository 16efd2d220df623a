"""A model small enough for tests, made by timm like the benchmark's own."""

from __future__ import annotations

from torch import nn

from cdra_mm.benchmark.case import Case


def build_tiny(name: str, image_size: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=image_size,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=2,
        num_classes=10,
        norm_layer=nn.LayerNorm,
    )


def tiny_case(**changes) -> Case:
    settings = dict(model='tiny', image_size=32, batch=3, repeats=2, warmup=1, build=build_tiny)
    return Case(**(settings | changes))
