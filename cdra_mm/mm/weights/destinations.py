"""Which backbones take the weights of other projects, and what each needs: one entry a class."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..host.model_patches import take_files_as_they_are
from .layouts import MMSEG_VIT, OPENMMLAB_BEIT, OPENMMLAB_SWIN, OPENMMLAB_VIT, Layout
from .positions import (
    add_extra_positions,
    resize_mmpretrain_beit,
    resize_mmseg_positions,
    resize_tables_bicubic,
    resize_tables_geometric,
)

__all__ = ['DESTINATIONS', 'Destination', 'destination_of']


def _nothing_to_attach(backbone: nn.Module) -> None:
    """The backbone hands files to its load hooks as they are."""


@dataclass(frozen=True)
class Destination:
    """How a class of backbones takes weights.

    Attributes:
        name: Package and class.
        layout: Its names.
        optional: Regular expression of own names that files need not hold: norms that a
            pretrained network has not, or has elsewhere.
        resize: Brings positions to what it loads or resizes: ``(backbone, weights, prefix)``.
        resized: Own names that it resizes itself on loading.
        attach: Clears the way to its load hooks.
    """

    name: str
    layout: Layout
    optional: str
    resize: Callable[[nn.Module, MutableMapping[str, Tensor], str], None]
    resized: tuple[str, ...] = ()
    attach: Callable[[nn.Module], None] = _nothing_to_attach


DESTINATIONS = {
    destination.name: destination
    for destination in (
        Destination(
            'mmpretrain.VisionTransformer',
            OPENMMLAB_VIT,
            optional=r'ln[12]\.(?:weight|bias)',
            resized=('pos_embed',),
            resize=add_extra_positions,
        ),
        Destination(
            'mmpretrain.BEiTViT',
            OPENMMLAB_BEIT,
            optional=r'ln[12]\.(?:weight|bias)',
            resized=('pos_embed',),
            resize=resize_mmpretrain_beit,
        ),
        Destination(
            'mmpretrain.SwinTransformer',
            OPENMMLAB_SWIN,
            optional=r'norm\d\.(?:weight|bias)',
            resized=('absolute_pos_embed',),
            resize=resize_tables_geometric,
        ),
        Destination(
            'mmseg.VisionTransformer',
            MMSEG_VIT,
            optional=r'ln1\.(?:weight|bias)',
            resize=resize_mmseg_positions,
        ),
        Destination(
            'mmseg.BEiT',
            OPENMMLAB_BEIT,
            optional=r'ln1\.(?:weight|bias)',
            resize=resize_tables_geometric,
            attach=take_files_as_they_are,
        ),
        Destination(
            'mmseg.SwinTransformer',
            OPENMMLAB_SWIN,
            optional=r'norm\d\.(?:weight|bias)',
            resize=resize_tables_bicubic,
        ),
    )
}
# Subclasses of the above with names or loading of their own.
OTHERS = {'mmseg.MAE'}


def destination_of(backbone: nn.Module) -> Destination | None:
    """The entry for a backbone's class or the nearest class it derives from; None for others."""
    for cls in type(backbone).__mro__:
        name = f'{cls.__module__.partition(".")[0]}.{cls.__name__}'
        if name in OTHERS:
            return None
        if name in DESTINATIONS:
            return DESTINATIONS[name]
    return None
