"""Where weights sit: in which layer of the backbone, and in which role there.

The model knows both: a layer is a transformer block, and a target has its role by the structure of
its family. A plan keeps them, so that whoever draws it needs no model. Plans of earlier releases do
not: `positions_by_name` is the one place that reads them from names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from cdra_mm.errors import PlanError

from ..model.families import FAMILIES
from ..model.targets import find_targets
from ..model.transformer_layers import find_layers
from .plan import Plan
from .records import Positions

__all__ = ['find_positions', 'positions_by_name', 'with_positions']


def find_positions(model: nn.Module) -> Positions:
    """The positions in a backbone, plain or adapted; none where it has no transformer blocks."""
    try:
        targets = find_targets(model)
    except PlanError:
        return Positions()
    return Positions(
        tuple(find_layers(model)), {name: target.role for name, target in targets.items()}
    )


def with_positions(plan: Plan, model: nn.Module) -> Plan:
    """The plan with its positions, those of the model that it is for where it has none."""
    return plan if plan.positions else replace(plan, positions=find_positions(model))


def positions_by_name(names: Iterable[str]) -> Positions:
    """What the names tell of a plan that holds no positions.

    A layer is what its path has up to its number, and up to the last one where blocks are numbered
    within stages; a role is known of the parts of fused matrices only.
    """
    names = list(names)
    parts = {part for family in FAMILIES for fused in family.fused.values() for part in fused}
    roles = {name: name.rpartition(':')[2] for name in names if ':' in name}
    layers = {layer for layer in _numbered([name.partition(':')[0] for name in names]) if layer}
    order = sorted(layers, key=lambda path: [int(n) for n in path if n.isdecimal()])
    return Positions(
        tuple('.'.join(path) for path in order),
        {name: role for name, role in roles.items() if role in parts},
    )


def _numbered(names: list[str]) -> set[tuple[str, ...]]:
    """The paths, in pieces, that end with the number of a layer."""
    pieces = [tuple(name.split('.')) for name in names]
    found = [_to_number(path, 0) for path in pieces]
    while True:
        longer = [_to_number(path, len(at)) for path, at in zip(pieces, found, strict=True)]
        # ``stages.0`` is no layer: everything in it is in ``blocks.<number>``. In a layer, some
        # names go on without a number, or under different words.
        words = {new[len(old) : -1] for old, new in zip(found, longer, strict=True) if old}
        if len(words) != 1 or any(len(word) != 1 for word in words):
            return set(found)
        found = [new if old else old for old, new in zip(found, longer, strict=True)]


def _to_number(path: tuple[str, ...], start: int) -> tuple[str, ...]:
    for i in range(start, len(path) - 1):
        if path[i].isdecimal():
            return path[: i + 1]
    return path[:start]
