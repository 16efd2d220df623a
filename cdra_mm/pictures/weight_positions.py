"""The positions of a plan's weights as a picture shows them: numbers of layers, roles in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from cdra_mm.core.planning.records import Positions

__all__ = ['WeightPosition', 'WeightPositions', 'role_order']

VECTOR = 'biases, norms, scales'
# The roles of `Target` in words, in the order of a block.
WORDS = {
    'q': 'query',
    'k': 'key',
    'v': 'value',
    'proj': 'attention output',
    'w1': 'feed-forward, gate',
    'fc1': 'feed-forward, up',
    'w2': 'feed-forward, up',
    'fc2': 'feed-forward, down',
    'w3': 'feed-forward, down',
    'bias': VECTOR,
    'norm': VECTOR,
    'scale': VECTOR,
}
ORDER = tuple(dict.fromkeys(WORDS.values()))


@dataclass(frozen=True)
class WeightPosition:
    """Where one weight sits.

    Attributes:
        layer: Number of its layer as its path has it (``'3'``; ``'2.5'`` for a block of a stage),
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
        positions: Its layers and roles.
        names: The weights that are drawn.

    Attributes:
        layers: The layers from the first to the last, those without such a weight included.
        roles: What the weights are, in the order of a block.

    Example:
        >>> known = Positions(('layers.0', 'layers.1'), {'layers.0.attn.qkv.weight:q': 'q'})
        >>> WeightPositions(known)['layers.0.attn.qkv.weight:q']
        WeightPosition(layer='0', role='query')
    """

    def __init__(self, positions: Positions, names: Iterable[str] = ()) -> None:
        self._positions = positions
        numbers = ['.'.join(filter(str.isdecimal, p.split('.'))) for p in positions.layers]
        unique = '' not in numbers and len(set(numbers)) == len(numbers)
        self._labels = dict(
            zip(positions.layers, numbers if unique else positions.layers, strict=True)
        )
        self.layers = list(self._labels.values())
        # Two different weights of a block may have one role: then both keep their paths.
        names = list(names)
        alike: dict[tuple[str, str], set[str]] = defaultdict(set)
        for name in {*positions.roles, *names}:
            alike[positions.layer_of(name), self._words(name)].add(name)
        self._twice = {role for (_, role), own in alike.items() if len(own) > 1 and role != VECTOR}
        self.roles = sorted({self[name].role for name in names}, key=role_order)

    def __getitem__(self, name: str) -> WeightPosition:
        role = self._words(name)
        if role in self._twice:
            role = Positions(self._positions.layers).role_of(name)
        return WeightPosition(self._labels.get(self._positions.layer_of(name), ''), role)

    def _words(self, name: str) -> str:
        role = self._positions.role_of(name)
        return WORDS.get(role, role) if name in self._positions.roles else role


def role_order(role: str) -> tuple[int, str]:
    """Sorts roles as they come in a block; unknown ones before the vectors, which are last."""
    if role == VECTOR or role not in ORDER:
        return len(ORDER) + (role == VECTOR), role
    return ORDER.index(role), ''
