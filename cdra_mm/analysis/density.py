"""How dense rows and columns are against the whole matrix (the paper's Figure 2)."""

from __future__ import annotations

from torch import Tensor

from cdra_mm.core.planning.compaction import ordered_sides
from cdra_mm.pictures import colour_of, new_figure

from .picture import Picture, Table
from .regions import Region

__all__ = ['density_picture']


def density_picture(region: Region, mask: Tensor) -> Picture:
    """The share of selected entries of every row and column of one matrix, sorted.

    Args:
        region: The matrix.
        mask: Its selected entries, bool ``[O, I]``.
    """
    (row_order, num_rows), (col_order, num_cols) = ordered_sides(mask)
    height, width = region.shape
    in_rows = (mask.sum(1)[row_order] / width).tolist()
    in_cols = (mask.sum(0)[col_order] / height).tolist()
    whole = int(mask.sum()) / (height * width)
    sides = (('row', in_rows, row_order, num_rows), ('column', in_cols, col_order, num_cols))

    def draw():
        figure = new_figure(7.5, 3.0)
        for i, (axes, (side, density, _, used)) in enumerate(
            zip(figure.subplots(1, 2, sharey=True), sides, strict=True)
        ):
            positions = range(1, len(density) + 1)
            axes.fill_between(positions, [100 * d for d in density], color=colour_of(i), alpha=0.25)
            axes.plot(
                positions, [100 * d for d in density], color=colour_of(i), label=f'each {side}'
            )
            axes.axhline(
                100 * whole, color='black', linestyle='--', linewidth=1, label='whole matrix'
            )
            axes.set_xlabel(f'{side}s, most selected first ({used:,} of {len(density):,} hold any)')
            axes.set_xlim(1, max(2, len(density)))
            axes.set_ylim(0, 105 * max(*in_rows, *in_cols))
            axes.grid(axis='y')
            axes.legend(loc='upper right')
        figure.axes[0].set_ylabel('selected entries (%)')
        return figure

    rows = [
        (side, place, int(index), value)
        for side, density, order, _ in sides
        for place, (index, value) in enumerate(zip(order.tolist(), density, strict=True), 1)
    ]
    denser = [100 * sum(d > whole for d in values) / len(values) for values in (in_rows, in_cols)]
    return Picture(
        'density',
        f'How dense rows and columns are: {region.position}',
        f'The share of selected entries in each row and each column of {region.name}, sorted; the '
        f'dashed line is the share in the whole matrix ({100 * whole:.2f} %). {denser[0]:.0f} % of '
        f'the rows and {denser[1]:.0f} % of the columns are denser than the whole.',
        draw,
        Table(('side', 'place', 'index', 'share selected'), rows),
    )
