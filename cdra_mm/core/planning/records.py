"""What a plan says of one weight or module: a block, a vector, single entries, or another part.

And where all of them sit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

__all__ = ['Block', 'Part', 'Positions', 'SparseMatrix', 'Vector', 'plain_of']


@dataclass(frozen=True)
class Block:
    """A matrix and its compact block (Eq. 4) with its rank (Eq. 7).

    Attributes:
        name: Target name.
        shape: ``(O, I)`` of the target.
        rows: Row indices of the block in the target, most selected first.
        cols: Column indices, likewise.
        rank: Rank of the adapter; 0 in `Plan.dropped`.
        num_sensitive: Selected entries.
        scale: Factor of the update (LoRA's alpha / r; CDRA has none).
        dropout: Probability with which the adapter's input is dropped in training.
    """

    name: str
    shape: tuple[int, int]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    rank: int
    num_sensitive: int
    scale: float = 1.0
    dropout: float = 0.0

    @property
    def num_params(self) -> int:
        """Trainable parameters of the adapter, ``r (|R| + |C|)``."""
        return self.rank * (len(self.rows) + len(self.cols))

    @property
    def density(self) -> float:
        """Selected entries over entries of the block."""
        return self.num_sensitive / (len(self.rows) * len(self.cols))


@dataclass(frozen=True)
class Vector:
    """A bias, norm weight or layer scale that is trained.

    Attributes:
        name: Target name.
        length: Number of entries.
        indices: Entries that are trained; None trains the whole vector.
        num_sensitive: Selected entries.
    """

    name: str
    length: int
    indices: tuple[int, ...] | None
    num_sensitive: int

    @property
    def num_params(self) -> int:
        """Trainable parameters."""
        return self.length if self.indices is None else len(self.indices)


@dataclass(frozen=True)
class SparseMatrix:
    """A matrix of which single entries are trained (SPT's unstructured part, GPS).

    Attributes:
        name: Target name.
        shape: ``(O, I)`` of the target.
        indices: Trained entries, positions in the flattened target.
    """

    name: str
    shape: tuple[int, int]
    indices: tuple[int, ...]

    @property
    def num_params(self) -> int:
        """Trainable parameters."""
        return len(self.indices)


@dataclass(frozen=True)
class Part:
    """A trained part of another kind that is put on the model.

    Attributes:
        name: ``<module path>.<kind>``, or the target's name for a change of a weight.
        kind: Its kind, see `core.adapter`.
        sizes: What the kind is built with; plain numbers and texts.
        num_params: Trainable parameters.
    """

    name: str
    kind: str
    sizes: Mapping[str, Any]
    num_params: int


@dataclass(frozen=True)
class Positions:
    """The layers of a backbone and the roles of its targets.

    Attributes:
        layers: Paths of the transformer blocks, first to last.
        roles: `Target.role` by the target's name.
    """

    layers: tuple[str, ...] = ()
    roles: dict[str, str] = field(default_factory=dict)

    def layer_of(self, name: str) -> str:
        """Path of the layer that holds a weight or module, '' if none does."""
        path = name.partition(':')[0]
        layers = set(self.layers)
        while path and path not in layers:
            path = path.rpartition('.')[0]
        return path

    def role_of(self, name: str) -> str:
        """The role of a target; of anything else its path in its layer."""
        inside = name.removeprefix(f'{self.layer_of(name)}.').removesuffix('.weight')
        return self.roles.get(name, inside)


def plain_of(value: Any) -> Any:
    """A value of a plan with dicts in the place of records, their fields as they are.

    Not by ``dataclasses.asdict``, which copies a million indices one by one.
    """
    if is_dataclass(value):
        return {key: plain_of(entry) for key, entry in vars(value).items()}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return [plain_of(entry) for entry in value]
    return value
