"""Maps of a plan: one number for each layer and each role of weight in it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdra_mm.core import Plan
from cdra_mm.core.planning.plan import Block, Part, SparseMatrix, Vector
from cdra_mm.core.planning.plan_positions import positions_by_name

from .style import INK, SEQUENCE, new_figure
from .weight_positions import WeightPositions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['MAPS', 'PlanMap', 'draw_map', 'map_of', 'map_values', 'positions_of', 'short_number']

LABELLED_CELLS = 16  # layers up to which a number fits into a cell
TOO_WIDE = 1000  # largest over smallest number
LABELLED_LAYERS = 25  # layers up to which each one is named


@dataclass(frozen=True)
class PlanMap:
    """Numbers by layer and role of weight.

    Attributes:
        title: What they are.
        unit: Of one number, for the numbers behind the map.
        layers: Columns, first layer first.
        roles: Rows, top to bottom.
        values: By ``(role, layer)``; what is missing is drawn empty.
        outside: The sum of what belongs to no layer.
    """

    title: str
    unit: str
    layers: tuple[str, ...]
    roles: tuple[str, ...]
    values: Mapping[tuple[str, str], float]
    outside: float = 0


def _ranks(plan: Plan) -> dict[str, float]:
    return {block.name: block.rank for block in (*plan.blocks, *plan.dropped)}


def _parameters(plan: Plan) -> dict[str, float]:
    trained: list[Block | Vector | SparseMatrix | Part] = [
        *plan.blocks,
        *plan.vectors,
        *plan.sparse,
        *plan.parts,
    ]
    return {**{record.name: record.num_params for record in trained}, **plan.also_train}


# What can be mapped of every plan: title, unit, the number of each name.
MAPS: dict[str, tuple[str, str, Callable[[Plan], dict[str, float]]]] = {
    'ranks': ('Ranks', 'rank', _ranks),
    'parameters': ('Trainable parameters', 'trainable parameters', _parameters),
}


def map_of(plan: Plan, what: str, positions: WeightPositions | None = None) -> PlanMap:
    """A map of a plan.

    Args:
        plan: The plan.
        what: A key of `MAPS`.
        positions: Where its weights sit, if more is known than the plan tells.
    """
    title, unit, numbers = MAPS[what]
    return map_values(numbers(plan), title, unit, positions or positions_of(plan))


def map_values(
    values: Mapping[str, float], title: str, unit: str, positions: WeightPositions
) -> PlanMap:
    """A map of numbers that are known for some weights; those in one cell are added up.

    Args:
        values: One number for each name.
        title: What they are.
        unit: Of one number.
        positions: Where these weights sit.
    """
    cells: dict[tuple[str, str], float] = defaultdict(float)
    outside = 0.0
    for name, value in values.items():
        position = positions[name]
        if position.layer:
            cells[position.role, position.layer] += value
        else:
            outside += value
    present = dict.fromkeys(role for role, _ in cells)
    # Weights in the order of a block, then what has no shape, as it comes.
    roles = dict.fromkeys([*(role for role in positions.roles if role in present), *present])
    return PlanMap(title, unit, tuple(positions.layers), tuple(roles), dict(cells), outside)


def positions_of(plan: Plan, names: Iterable[str] = ()) -> WeightPositions:
    """The positions of everything in a plan."""
    matrices: list[Block | SparseMatrix | Vector] = [*plan.blocks, *plan.dropped, *plan.sparse]
    drawn = [*(record.name for record in [*matrices, *plan.vectors]), *names]
    others = [*(part.name for part in plan.parts), *plan.also_train]
    return WeightPositions(plan.positions or positions_by_name([*drawn, *others]), drawn)


def draw_map(plan_map: PlanMap) -> Figure:
    """Draws a map; call it within `styled`.

    Cells hold their numbers where there is room; a hatched cell has none.
    """
    import numpy as np

    rows, columns = max(1, len(plan_map.roles)), max(1, len(plan_map.layers))
    figure = new_figure(7.5, 1.3 + 0.3 * rows)
    axes = figure.subplots()
    grid = np.full((rows, columns), math.nan)
    for (role, layer), value in plan_map.values.items():
        grid[plan_map.roles.index(role), plan_map.layers.index(layer)] = value
    norm = _scale([value for value in plan_map.values.values() if value > 0])
    logarithmic = norm.vmin > 0
    axes.set_facecolor('#F2F2F2')
    image = axes.imshow(grid, aspect='auto', cmap=SEQUENCE, norm=norm)
    if columns <= LABELLED_CELLS:
        _write_numbers(axes, grid, norm)
    step = math.ceil(columns / LABELLED_LAYERS)
    axes.set_xticks(range(0, len(plan_map.layers), step), plan_map.layers[::step])
    axes.set_yticks(range(len(plan_map.roles)), plan_map.roles)
    # Not as a grid of minor ticks, each of which is laid out.
    between: dict[str, Any] = dict(colors='white', linewidth=1.0)
    axes.hlines(np.arange(rows + 1) - 0.5, -0.5, columns - 0.5, **between)
    axes.vlines(np.arange(columns + 1) - 0.5, -0.5, rows - 0.5, **between)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel('layer')
    axes.set_title(plan_map.title + (', logarithmic colours' if logarithmic else ''))
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(lambda value, _: short_number(value))
    if not logarithmic:
        bar.ax.locator_params(nbins=4)
    return figure


def _scale(values: list[float]) -> Any:
    """From zero to the largest; by powers of ten where small numbers would all look like zero."""
    from matplotlib.colors import LogNorm, Normalize

    if values and max(values) > TOO_WIDE * min(values):
        return LogNorm(min(values), max(values), clip=True)
    return Normalize(0, max(values, default=1.0))


def _write_numbers(axes: Any, grid: Any, norm: Any) -> None:
    rows, columns = grid.shape
    for i in range(rows):
        for j in range(columns):
            if not math.isnan(grid[i, j]):
                # The dark end of the scale takes white letters.
                colour = INK if norm(grid[i, j]) > 0.55 else 'white'
                text = short_number(float(grid[i, j]))
                written = axes.text(j, i, text, ha='center', va='center', color=colour, fontsize=7)
                written.set_in_layout(False)  # it lies inside its cell


def short_number(value: float) -> str:
    """A number in at most five letters or so.

    Example:
        >>> [short_number(n) for n in (0, 7, 999, 1234, 45678, 1.5e6, 0.02345, 1.2e-9)]
        ['0', '7', '999', '1.2k', '46k', '1.5M', '0.023', '1e-09']
    """
    for scale, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if abs(value) >= 0.9995 * scale:
            scaled = value / scale
            return f'{scaled:.{1 if abs(scaled) < 9.95 else 0}f}'.removesuffix('.0') + letter
    if value and abs(value) < 0.001:
        return f'{value:.0e}'
    return f'{value:.0f}' if abs(value) >= 99.5 or value == int(value) else f'{value:.2g}'
