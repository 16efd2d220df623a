"""The part of each matrix that a plan trains, seen the same way for every method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdra_mm.core import compact
from cdra_mm.errors import ConfigError
from cdra_mm.pictures import WeightPosition, WeightPositions
from cdra_mm.spelling import did_you_mean

from .run import Run

__all__ = ['Region', 'find_region', 'mask_of', 'middle_region', 'regions_of']


@dataclass(frozen=True)
class Region:
    """The rows and columns of a matrix that hold what is trained or selected.

    Attributes:
        name: Target name.
        position: Its layer and role.
        shape: ``(O, I)`` of the matrix.
        rows: Indices, most selected first.
        cols: Likewise.
        num_selected: Selected entries; 0 where nothing was selected by scores (LoRA).
        rank: Rank of the adapter, 0 for a matrix that stays frozen, None for single entries.
        num_params: Trainable parameters.
    """

    name: str
    position: WeightPosition
    shape: tuple[int, int]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    num_selected: int
    rank: int | None
    num_params: int

    @property
    def density(self) -> float:
        """Selected entries over entries of the region."""
        return self.num_selected / (len(self.rows) * len(self.cols))

    @property
    def treatment(self) -> str:
        """How it is trained, in a few words."""
        if self.rank is None:
            return 'single entries'
        return f'rank {self.rank}' if self.rank else 'frozen'


def regions_of(run: Run) -> list[Region]:
    """The regions of a run, by layer and kind of matrix."""
    plan = run.plan
    if plan is None:
        return []
    positions = run.positions
    found = [
        Region(
            block.name,
            positions[block.name],
            block.shape,
            block.rows,
            block.cols,
            block.num_sensitive,
            block.rank,
            block.num_params,
        )
        for block in (*plan.blocks, *plan.dropped)
    ]
    for matrix in plan.sparse:
        rows, cols = (
            tuple(side.tolist()) for side in compact(_listed(matrix.indices, matrix.shape))
        )
        size = len(matrix.indices)
        position = positions[matrix.name]
        found.append(Region(matrix.name, position, matrix.shape, rows, cols, size, None, size))
    return sorted(found, key=lambda region: _position_key(region.position, positions))


def _position_key(position: WeightPosition, positions: WeightPositions) -> tuple[int, int]:
    """Sorts positions from the first layer to the last, within a layer by role."""
    layer = positions.layers.index(position.layer) if position.layer in positions.layers else -1
    return layer, positions.roles.index(position.role) if position.role in positions.roles else -1


def mask_of(run: Run, name: str) -> Tensor | None:
    """The selected entries of a matrix, bool ``[O, I]``.

    None where they were not kept, or the plan has selected none: what is kept then is the blocks.
    """
    selects = run.plan is None or run.plan.num_sensitive
    masks: Mapping[str, Tensor] = run.kept.masks if run.kept and selects else {}
    if name in masks:
        return masks[name]
    for matrix in run.plan.sparse if run.plan else ():
        if matrix.name == name:
            return _listed(matrix.indices, matrix.shape)
    return None


def middle_region(regions: list[Region]) -> Region | None:
    """The region of median size, the larger of two; of those that are trained, if any is."""
    trained = [region for region in regions if region.rank != 0] or regions
    by_size = sorted(trained, key=lambda region: len(region.rows) * len(region.cols))
    return by_size[len(by_size) // 2] if by_size else None


def find_region(regions: list[Region], name: str) -> Region:
    """The region of a matrix.

    Raises:
        ConfigError: If the plan does not touch it.
    """
    for region in regions:
        if region.name == name:
            return region
    near = did_you_mean(name, [region.name for region in regions])
    raise ConfigError(
        f'matrix {name!r} is not in the plan{near}: expected one of its {len(regions)} matrices'
        + (f', for example {regions[0].name}' if regions else '')
    )


def _listed(indices: tuple[int, ...], shape: tuple[int, int]) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[torch.tensor(indices, dtype=torch.int64)] = True
    return mask
