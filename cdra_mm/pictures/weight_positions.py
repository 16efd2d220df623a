"""Where a weight sits: its layer and what it is there, read from the names alone.

A plan names its weights and nothing else, and a report has to do without the model. The names of a
stack of blocks differ in their numbers only:

    layers.3.attn.qkv.weight:q        block ``layers.3``,          inside it ``attn.qkv.weight:q``
    stages.2.blocks.5.ffn.fc1.weight  block ``stages.2.blocks.5``, inside it ``ffn.fc1.weight``

This decides where a number is drawn, and nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ['WeightPosition', 'WeightPositions', 'role_order']

PARTS = {
    'q': 'query',
    'k': 'key',
    'v': 'value',
    'w1': 'feed-forward, gate',
    'w2': 'feed-forward, up',
}
SQUARE, WIDER, NARROWER = 'attention output', 'feed-forward, up', 'feed-forward, down'
VECTOR = 'biases, norms, scales'
ORDER = ('query', 'key', 'value', SQUARE, 'feed-forward, gate', WIDER, NARROWER)

_LayerPath = tuple[str, ...]  # the path of a layer, in pieces; () for what is in none


@dataclass(frozen=True)
class WeightPosition:
    """Where one weight sits.

    Attributes:
        layer: Number of its layer as its name has it (``'3'``; ``'2.5'`` for a block of a stage),
            '' outside the blocks.
        role: What it is in its block (``'query'``, ``'feed-forward, up'``), otherwise its path
            there.
    """

    layer: str
    role: str

    def __str__(self) -> str:
        return f'layer {self.layer}, {self.role}' if self.layer else self.role


class WeightPositions:
    """The positions of the weights of one backbone.

    Args:
        names: All names that are known of it; the more, the surer its blocks are found.
        shapes: Of matrices ``(O, I)``, by name: what tells a feed-forward layer's first from its
            second, and both from an attention's output. Of vectors ``(length,)``: they are one
            role.

    Attributes:
        layers: The layers from the first to the last, those without a known name included.
        roles: What the given matrices and vectors are, in the order of a block.

    Example:
        >>> positions = WeightPositions(['layers.0.attn.qkv.weight:q', 'layers.2.attn.proj.weight'])
        >>> positions['layers.2.attn.proj.weight']
        WeightPosition(layer='2', role='attn.proj')
        >>> positions.layers
        ['0', '1', '2']
    """

    def __init__(
        self, names: Iterable[str], shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        shapes = shapes or {}
        names = list(dict.fromkeys([*names, *shapes]))
        self._layer_paths = _layer_paths(names)
        self.layers = _layers(set(self._layer_paths.values()))
        guesses = {name: _guess(name, shape) for name, shape in shapes.items()}
        inside = {name: self._inside(name) for name in names}
        # Two different weights of a block may look alike by shape: then both keep their paths.
        paths = defaultdict(set)
        for name, guess in guesses.items():
            paths[guess].add(inside[name])
        sure = {guess for guess, own in paths.items() if guess == VECTOR or len(own) == 1}
        self._roles = {
            name: guesses[name] if guesses.get(name) in sure else _plain(path)
            for name, path in inside.items()
        }
        self.roles = sorted(dict.fromkeys(self._roles[name] for name in shapes), key=role_order)

    def __getitem__(self, name: str) -> WeightPosition:
        return WeightPosition('.'.join(_numbers(self._layer_paths[name])), self._roles[name])

    def _inside(self, name: str) -> str:
        return '.'.join(name.split('.')[len(self._layer_paths[name]) :])


def _layer_paths(names: list[str]) -> dict[str, _LayerPath]:
    """The path of the layer of each name: up to its first number, or further for stages."""
    pieces = {name: tuple(name.split('.')) for name in names}
    layers = {name: _to_number(parts, 0) for name, parts in pieces.items()}
    while True:
        members = defaultdict(list)
        for name, layer in layers.items():
            members[layer].append(name)
        members.pop((), None)
        longer = {name: _to_number(pieces[name], len(layer)) for name, layer in layers.items()}
        # ``stages.0`` is no layer: everything in it is in ``blocks.<number>``. In a layer, some
        # names go on without a number, or under different words.
        words = {longer[name][len(layer) : -1] for layer, own in members.items() for name in own}
        if len(words) != 1 or any(len(word) != 1 for word in words):
            return layers
        layers = {name: longer[name] if layer else layer for name, layer in layers.items()}


def _to_number(parts: _LayerPath, start: int) -> _LayerPath:
    for i in range(start, len(parts) - 1):
        if parts[i].isdecimal():
            return parts[: i + 1]
    return parts[:start]


def _numbers(layer: _LayerPath) -> list[str]:
    return [piece for piece in layer if piece.isdecimal()]


def _layers(layers: set[_LayerPath]) -> list[str]:
    """The numbers of all layers, in order; gaps in the innermost number are filled."""
    most: dict[tuple[int, ...], int] = {}
    for layer in layers - {()}:
        *outer, last = map(int, _numbers(layer))
        most[tuple(outer)] = max(last, most.get(tuple(outer), 0))
    return [
        '.'.join(map(str, (*outer, i))) for outer in sorted(most) for i in range(most[outer] + 1)
    ]


def _guess(name: str, shape: tuple[int, ...]) -> str:
    if len(shape) != 2:
        return VECTOR
    owner, _, part = name.rpartition(':')
    if not owner:  # q, k and v as layers of their own
        part = name.rpartition('.')[0].rpartition('.')[2].removesuffix('_proj')
    if part in PARTS:
        return PARTS[part]
    if shape[0] == shape[1]:
        return SQUARE
    return WIDER if shape[0] > shape[1] else NARROWER


def _plain(path: str) -> str:
    return path.removesuffix('.weight')


def role_order(role: str) -> tuple[int, str]:
    """Sorts roles as they come in a block; unknown ones after them, vectors last."""
    if role in ORDER:
        return ORDER.index(role), ''
    return len(ORDER) + (role == VECTOR), role
