"""Rows and columns of the blocks over all layers (the paper's Figure 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from cdra_mm.pictures import colour_of, new_figure

from .picture import Picture, Table
from .regions import Region

__all__ = ['block_sizes_picture']

ROWS, COLUMNS = 1, 0  # colours: the paper draws rows red and columns blue
PANELS_IN_A_LINE = 2
MARKED = 100  # matrices up to which each has a mark


def block_sizes_picture(runs: Mapping[str, Sequence[Region]], group: str = 'plan') -> Picture:
    """The sizes of all blocks in the order of the network, one panel for each run.

    Args:
        runs: Regions of each run by its name, at least one each.
        group: Where the picture belongs.
    """

    def draw():
        top = max(max(len(r.rows), len(r.cols)) for own in runs.values() for r in own)
        lines = -(-len(runs) // PANELS_IN_A_LINE)
        across = min(len(runs), PANELS_IN_A_LINE)
        figure = new_figure(7.5, 0.4 + 2.6 * lines)
        panels = figure.subplots(lines, across, sharey=True, squeeze=False).flatten()
        for axes in panels[len(runs) :]:
            axes.set_visible(False)
        for axes, (name, regions) in zip(panels, runs.items(), strict=False):
            for key, label, sizes in (
                (ROWS, 'rows', [len(region.rows) for region in regions]),
                (COLUMNS, 'columns', [len(region.cols) for region in regions]),
            ):
                colour = colour_of(key)
                marker = 'os'[key] if len(sizes) <= MARKED else None
                style = {'marker': marker, 'markersize': 3, 'linewidth': 0.9}
                text = f'{label}, mean {mean(sizes):.0f}'
                axes.plot(range(len(sizes)), sizes, color=colour, label=text, **style)
                axes.axhline(mean(sizes), color=colour, linestyle='--', linewidth=1)
            ticks, labels = _layer_ticks(regions)
            axes.set_xticks(ticks, labels)
            axes.set_ylim(0, 1.05 * top)
            axes.grid(axis='y')
            axes.set_title(name if len(runs) > 1 else 'Sizes of the blocks', pad=26)
            axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
            axes.set_xlabel('layer (one point for each matrix)')
        for axes in panels[::across]:
            axes.set_ylabel('rows or columns')
        return figure

    means = '; '.join(
        f'{name}: {mean(len(r.rows) for r in regions):.0f} rows x '
        f'{mean(len(r.cols) for r in regions):.0f} columns over {len(regions)} matrices'
        for name, regions in runs.items()
    )
    return Picture(
        'block_sizes',
        'Rows and columns of the blocks over all layers',
        'How many rows and columns of each touched matrix hold a selected entry, from the first '
        f'layer to the last. Means (dashed): {means}.',
        draw,
        Table(
            ('run', 'matrix', 'layer', 'kind', 'block rows', 'block columns', 'rank'),
            [
                (run, r.name, r.position.layer, r.position.role, len(r.rows), len(r.cols), r.rank)
                for run, regions in runs.items()
                for r in regions
            ],
        ),
        group,
    )


def _layer_ticks(regions: Sequence[Region], most: int = 12) -> tuple[list[int], list[str]]:
    """The first matrix of each layer, thinned out so that labels have room."""
    first: dict[str, int] = {}
    for i, region in enumerate(regions):
        first.setdefault(region.position.layer, i)
    # Layers with few matrices would crowd their labels.
    apart = max(1, len(regions) / most)
    ticks: list[int] = []
    for position in first.values():
        if not ticks or position - ticks[-1] >= apart:
            ticks.append(position)
    names = {position: layer for layer, position in first.items()}
    return ticks, [names[position] for position in ticks]
