"""The ranks of several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cdra_mm.pictures import INK, SEQUENCE, new_figure
from cdra_mm.pictures.plan_map import LABELLED_CELLS, LABELLED_LAYERS
from cdra_mm.pictures.weight_positions import role_order

from .picture import Picture, Table
from .regions import Region

__all__ = ['rank_comparison_picture', 'short_name']


def rank_comparison_picture(
    regions: Mapping[str, Sequence[Region]], layers: Sequence[str]
) -> Picture:
    """For each kind of matrix a strip of runs against layers."""
    kinds = sorted({r.position.role for own in regions.values() for r in own}, key=role_order)
    ranks = {
        (name, r.position.role, r.position.layer): r.rank
        for name, own in regions.items()
        for r in own
        if r.rank is not None
    }

    def draw():
        import numpy as np

        lines = len(regions)
        figure = new_figure(7.5, 0.7 + len(kinds) * (0.45 + 0.22 * lines))
        panels = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
        top = max([1, *ranks.values()])
        for axes, kind in zip(panels, kinds, strict=True):
            grid = np.array(
                [[ranks.get((run, kind, layer), np.nan) for layer in layers] for run in regions]
            )
            axes.set_facecolor('#F2F2F2')
            image = axes.imshow(grid, aspect='auto', cmap=SEQUENCE, vmin=0, vmax=top)
            for i, j in np.argwhere(~np.isnan(grid)) if len(layers) <= LABELLED_CELLS else ():
                colour = INK if grid[i, j] > 0.55 * top else 'white'
                axes.text(j, i, f'{grid[i, j]:.0f}', ha='center', va='center', color=colour,
                          fontsize=7)  # fmt: skip
            axes.set_title(kind, fontsize=9, pad=3)
            axes.set_yticks(range(lines), [short_name(run) for run in regions])
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
        step = math.ceil(len(layers) / LABELLED_LAYERS)
        panels[-1].set_xticks(range(0, len(layers), step), layers[::step])
        panels[-1].set_xlabel('layer')
        bar = figure.colorbar(image, ax=list(panels), fraction=0.03, pad=0.01)
        bar.set_label('rank')
        bar.outline.set_visible(False)
        bar.ax.locator_params(axis='y', integer=True)
        return figure

    rows = [
        (kind, layer, *(ranks.get((run, kind, layer)) for run in regions))
        for kind in kinds
        for layer in layers
        if any((run, kind, layer) in ranks for run in regions)
    ]
    return Picture(
        'ranks_compared',
        'Ranks side by side',
        'The rank that each run gives to each matrix, by kind of matrix and layer. Rank 0 stays '
        'frozen; a grey cell has nothing selected, or is not adapted by a rank.',
        draw,
        Table(('kind', 'layer', *regions), rows),
        'comparison',
    )


def short_name(name: str) -> str:
    """A name cut so that it fits beside a picture."""
    return name if len(name) <= 24 else f'{name[:11]}…{name[-12:]}'
