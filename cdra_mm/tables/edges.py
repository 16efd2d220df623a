"""Settings that were chosen at an edge of what was tried: better ones may lie beyond."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .grid import Row

__all__ = ['Edge', 'edges_of']


@dataclass(frozen=True)
class Edge:
    """A choice at an edge.

    Attributes:
        row: Name of the method.
        task: Name of the task.
        key: The setting.
        value: Its chosen value.
        tried: All its values, rising.
    """

    row: str
    task: str
    key: str
    value: float
    tried: tuple[float, ...]

    @property
    def text(self) -> str:
        """It in one line."""
        which = 'lowest' if self.value == self.tried[0] else 'highest'
        tried = ', '.join(f'{value:g}' for value in self.tried)
        return (
            f'{self.row} {self.task}: the best {self.key}={self.value:g} is the {which} that was '
            f'tried ({tried}); a better one may lie beyond'
        )


def edges_of(row: Row, task: str, chosen: Mapping[str, Any]) -> list[Edge]:
    """Those of the chosen settings that lie at an edge; only numbers have edges."""
    found = []
    for key, values in row.search.items():
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            continue
        tried = tuple(sorted(set(values)))
        if len(tried) > 1 and chosen.get(key) in (tried[0], tried[-1]):
            found.append(Edge(row.name, task, key, chosen[key], tried))
    return found
