"""The grid that a block's tokens lie in, for what mixes neighbours (`mona`).

A block is told it in one of three ways, looked for in this order:

- its tokens come as a map ``[B, H, W, E]`` (Swin of timm);
- it is called with the size beside them (Swin of mmseg and mmpretrain, EVA-02 of mmpretrain);
- the convolution that embeds the patches has just made a map of that size (plain transformers).

Images may be of any size and need not be square. Class and register tokens stand in front of those
of the grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from cdra_mm.core import find_layers
from cdra_mm.errors import PlanError

__all__ = ['TokenGrid', 'convolutions_in_front', 'forget_maps', 'grid_of', 'note_maps']

_NOTE = '_cdra_map'


class TokenGrid(NamedTuple):
    """Where the tokens of a block lie.

    Attributes:
        prefix: Tokens in front of the grid.
        height: H.
        width: W.
    """

    prefix: int
    height: int
    width: int


def convolutions_in_front(backbone: nn.Module) -> list[str]:
    """Paths of the convolutions before the first transformer block, in module order."""
    layers = find_layers(backbone)
    paths = [path for path, _ in backbone.named_modules()]
    in_front = set(paths[: paths.index(layers[0])]) if layers else set()
    return [
        path
        for path, module in backbone.named_modules()
        if path in in_front and isinstance(module, nn.Conv2d)
    ]


def note_maps(convolution: nn.Module) -> None:
    """Has a convolution note the size of its last map, from now on; once is enough."""
    if _note not in convolution._forward_hooks.values():
        convolution.register_forward_hook(_note)


def forget_maps(convolution: nn.Module) -> None:
    """Undoes `note_maps`."""
    hooks = convolution._forward_hooks
    for key in [key for key, hook in hooks.items() if hook is _note]:
        del hooks[key]
    convolution.__dict__.pop(_NOTE, None)


def _note(convolution: nn.Module, _: Any, y: Tensor) -> None:
    convolution.__dict__[_NOTE] = (int(y.shape[-2]), int(y.shape[-1]))


def grid_of(x: Any, beside: Iterable[Any], width: int, convolution: nn.Module | None) -> TokenGrid:
    """The grid of the tokens that a block is called with.

    Args:
        x: The tokens, ``[B, N, E]`` or ``[B, H, W, E]``.
        beside: What else it is called with.
        width: E.
        convolution: The one whose maps are noted; None where there is none.

    Raises:
        PlanError: If they are no tokens of that width, or lie in no grid that is known.
    """
    if not isinstance(x, Tensor) or x.dim() not in (3, 4) or x.shape[-1] != width:
        given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise PlanError(
            f'a block is called with {given}: expected tokens [B, N, {width}] or a map of them, '
            f'[B, H, W, {width}]'
        )
    if x.dim() == 4:
        return TokenGrid(0, int(x.shape[1]), int(x.shape[2]))
    number = int(x.shape[1])
    noted = None if convolution is None else convolution.__dict__.get(_NOTE)
    size = next(filter(None, map(_size, beside)), noted)
    if size is None:
        raise PlanError(
            f'the {number} tokens of a block lie in no grid that is known: nothing tells their '
            'size, and the convolution that embeds the patches was not called before; use another '
            'method for this backbone'
        )
    prefix = number - size[0] * size[1]
    if prefix < 0:
        raise PlanError(
            f'a block is called with {number} tokens, which do not fill a grid of {size[0]} x '
            f'{size[1]}: tokens were dropped or merged on the way, so neighbours are not known; '
            'switch that off, or use another method for this backbone'
        )
    return TokenGrid(prefix, *size)


def _size(value: Any) -> tuple[int, int] | None:
    """Height and width, where a value is such a pair."""
    if isinstance(value, tuple | list) and len(value) == 2:
        if all(isinstance(side, int) and not isinstance(side, bool) for side in value):
            return int(value[0]), int(value[1])
    return None
