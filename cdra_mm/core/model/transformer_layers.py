"""The layers of a model, which are its transformer blocks, found by structure, never by name.

A layer is the innermost member of a ``ModuleList`` or ``Sequential`` that holds an attention. It is
not called a block here: that is the compact block of a matrix (Eq. 4).
"""

from __future__ import annotations

from torch import nn

from .families import families_of

__all__ = ['attention_width', 'layer_width', 'find_layers']


def find_layers(model: nn.Module) -> list[str]:
    """Paths of the layers, in module order; [] if there is none."""
    members = {
        f'{path}.{child}'.removeprefix('.')
        for path, owner in model.named_modules()
        if isinstance(owner, nn.ModuleList | nn.Sequential)
        for child, _ in owner.named_children()
    }
    found: dict[str, None] = {}
    for path, module in model.named_modules():
        if not attention_width(module):
            continue
        while path and path not in members:
            path = path.rpartition('.')[0]
        if path:
            found[path] = None
    return list(found)


def layer_width(model: nn.Module, layer: str) -> int:
    """Width E of the tokens of a layer that `find_layers` has found."""
    return next(filter(None, map(attention_width, model.get_submodule(layer).modules())))


def attention_width(module: nn.Module) -> int:
    """The width of an attention's tokens, 0 for any other module."""
    widths = (family.width(module) for family in families_of(module) if family.width)
    return next(widths, 0)
