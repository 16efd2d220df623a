"""The transformer blocks of a model, found by structure, never by name.

A block is the innermost member of a ``ModuleList`` or ``Sequential`` that holds an attention.
"""

from __future__ import annotations

from torch import nn

from .families import families_of

__all__ = ['attention_width', 'block_width', 'find_blocks']


def find_blocks(model: nn.Module) -> list[str]:
    """Paths of the transformer blocks, in module order; [] if there is none.

    A block is an innermost member of a ``ModuleList`` or ``Sequential`` that holds an attention.
    """
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


def block_width(model: nn.Module, block: str) -> int:
    """Width E of the tokens of a block that `find_blocks` has found."""
    return next(filter(None, map(attention_width, model.get_submodule(block).modules())))


def attention_width(module: nn.Module) -> int:
    """The width of an attention's tokens, 0 for any other module."""
    widths = (family.width(module) for family in families_of(module) if family.width)
    return next(widths, 0)
