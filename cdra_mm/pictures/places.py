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

__all__ = ['Place', 'Places', 'kind_order']

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

_Block = tuple[str, ...]  # the path of a block, in pieces; () for what is in none


@dataclass(frozen=True)
class Place:
    """Where one weight sits.

    Attributes:
        layer: Number of its layer as its name has it (``'3'``; ``'2.5'`` for a block of a stage),
            '' outside the blocks.
        kind: What it is in its block (``'query'``, ``'feed-forward, up'``), otherwise its path
            there.
    """

    layer: str
    kind: str

    def __str__(self) -> str:
        return f'layer {self.layer}, {self.kind}' if self.layer else self.kind


class Places:
    """The places of the weights of one backbone.

    Args:
        names: All names that are known of it; the more, the surer its blocks are found.
        shapes: Of matrices ``(O, I)``, by name: what tells a feed-forward layer's first from its
            second, and both from an attention's output. Of vectors ``(length,)``: they are one
            kind.

    Attributes:
        layers: The layers from the first to the last, those without a known name included.
        kinds: What the given matrices and vectors are, in the order of a block.

    Example:
        >>> places = Places(['layers.0.attn.qkv.weight:q', 'layers.2.attn.proj.weight'])
        >>> places['layers.2.attn.proj.weight']
        Place(layer='2', kind='attn.proj')
        >>> places.layers
        ['0', '1', '2']
    """

    def __init__(
        self, names: Iterable[str], shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        shapes = shapes or {}
        names = list(dict.fromkeys([*names, *shapes]))
        self._blocks = _blocks(names)
        self.layers = _layers(set(self._blocks.values()))
        guesses = {name: _guess(name, shape) for name, shape in shapes.items()}
        inside = {name: self._inside(name) for name in names}
        # Two different weights of a block may look alike by shape: then both keep their paths.
        paths = defaultdict(set)
        for name, guess in guesses.items():
            paths[guess].add(inside[name])
        sure = {guess for guess, own in paths.items() if guess == VECTOR or len(own) == 1}
        self._kinds = {
            name: guesses[name] if guesses.get(name) in sure else _plain(path)
            for name, path in inside.items()
        }
        self.kinds = sorted(dict.fromkeys(self._kinds[name] for name in shapes), key=kind_order)

    def __getitem__(self, name: str) -> Place:
        return Place('.'.join(_numbers(self._blocks[name])), self._kinds[name])

    def _inside(self, name: str) -> str:
        return '.'.join(name.split('.')[len(self._blocks[name]) :])


def _blocks(names: list[str]) -> dict[str, _Block]:
    """The path of the block of each name: up to its first number, or further for stages."""
    pieces = {name: tuple(name.split('.')) for name in names}
    blocks = {name: _to_number(parts, 0) for name, parts in pieces.items()}
    while True:
        members = defaultdict(list)
        for name, block in blocks.items():
            members[block].append(name)
        members.pop((), None)
        longer = {name: _to_number(pieces[name], len(block)) for name, block in blocks.items()}
        # ``stages.0`` is no block: everything in it is in ``blocks.<number>``. In a block, some
        # names go on without a number, or under different words.
        words = {longer[name][len(block) : -1] for block, own in members.items() for name in own}
        if len(words) != 1 or any(len(word) != 1 for word in words):
            return blocks
        blocks = {name: longer[name] if block else block for name, block in blocks.items()}


def _to_number(parts: _Block, start: int) -> _Block:
    for i in range(start, len(parts) - 1):
        if parts[i].isdecimal():
            return parts[: i + 1]
    return parts[:start]


def _numbers(block: _Block) -> list[str]:
    return [piece for piece in block if piece.isdecimal()]


def _layers(blocks: set[_Block]) -> list[str]:
    """The numbers of all layers, in order; gaps in the innermost number are filled."""
    most: dict[tuple[int, ...], int] = {}
    for block in blocks - {()}:
        *outer, last = map(int, _numbers(block))
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


def kind_order(kind: str) -> tuple[int, str]:
    """Sorts kinds as they come in a block; unknown ones after them, vectors last."""
    if kind in ORDER:
        return ORDER.index(kind), ''
    return len(ORDER) + (kind == VECTOR), kind
