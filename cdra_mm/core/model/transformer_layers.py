"""The layers of a model, which are its transformer blocks, found by structure, never by name.

A layer is the innermost member of a ``ModuleList`` or ``Sequential`` that holds an attention. It is
not called a block here: that is the compact block of a matrix (Eq. 4).

Some layers are written as a list of their parts, attention and feed-forward each for itself:

    layers = ModuleList([ModuleList([Attention, FeedForward]), ...])    # vit-pytorch, CROMA
    layers = ModuleList([Layer(parts=ModuleList([Attention, FeedForward])), ...])    # T5

There a member that holds an attention is half a layer, and the layer is what has the list.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .families import families_of

__all__ = ['attention_width', 'layer_width', 'find_layers']


def find_layers(model: nn.Module) -> list[str]:
    """Paths of the layers, in module order; [] if there is none."""
    members = {
        f'{path}.{child}'.removeprefix('.'): path
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
            found[_whole_layer(model, path, members)] = None
    return list(found)


def _whole_layer(model: nn.Module, path: str, members: dict[str, str]) -> str:
    """The layer that a member of a list is a part of; the member itself if it is no part.

    Args:
        model: The model.
        path: Innermost member of a list that holds an attention.
        members: The list of each member, by paths.
    """
    parts = _with_attention(model.get_submodule(members[path]))
    if not all(map(_is_attention_alone, parts)):  # mostly the first is a whole layer
        return path
    for around in (members[path], members[path].rpartition('.')[0]):
        if around not in members:
            continue
        stack = model.get_submodule(members[around])
        # Other stages or a head beside it: then it is no layer in a stack of them.
        is_stacked = len(list(_with_attention(stack))) == len(stack._modules)
        rest = _outside_attention(model.get_submodule(around))
        if is_stacked and any(isinstance(module, nn.Linear) for module in rest):
            return around
    return path


def _with_attention(modules: nn.Module) -> Iterator[nn.Module]:
    """The children that hold an attention, looked for one by one."""
    return (child for child in modules.children() if any(map(attention_width, child.modules())))


def _is_attention_alone(module: nn.Module) -> bool:
    """Whether a module has no weight but vectors beside those of its attention."""
    rest = (p for m in _outside_attention(module) for p in m._parameters.values())
    return all(p is None or p.dim() < 2 for p in rest)


def _outside_attention(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in a module, without attentions and adapters and what is inside of them."""
    if attention_width(module) or getattr(module, 'is_adapter', False):
        return
    yield module
    for child in module.children():
        yield from _outside_attention(child)


def layer_width(model: nn.Module, layer: str) -> int:
    """Width E of the tokens of a layer that `find_layers` has found."""
    return next(filter(None, map(attention_width, model.get_submodule(layer).modules())))


def attention_width(module: nn.Module) -> int:
    """The width of an attention's tokens, 0 for any other module."""
    attentions = families_of(module, having='width')
    return next((family.width(module) for family in attentions if family.width), 0)
