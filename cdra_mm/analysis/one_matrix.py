"""One matrix before and after it is reorganised, and how dense its rows and columns are.

The paper's Figures 1 and 2. The mask of both, bool ``[O, I]``, has the selected entries.
"""

from __future__ import annotations

from torch import Tensor

from cdra_mm.core.planning.compaction import ordered_sides
from cdra_mm.pictures import FRAME, colour_of, new_figure

from .picture import Picture, Table
from .regions import Region
from .shares import draw_shares, shares

__all__ = ['density_picture', 'reorganised_picture']


def reorganised_picture(region: Region, mask: Tensor) -> Picture:
    """The selected entries of a matrix as they lie, and sorted into its block (Figure 1)."""
    (rows, _), (cols, _) = ordered_sides(mask)
    height, width = region.shape
    count = int(mask.sum())
    covered = len(region.rows) * len(region.cols) / (height * width)

    def draw():
        from matplotlib.patches import Rectangle

        # Wide matrices stand above each other, high and square ones side by side.
        ratio = height / width
        if ratio < 0.6:
            figure = new_figure(7.5, 1.6 + 12 * max(ratio, 0.1))
            left, right = figure.subplots(2, 1)
        else:
            figure = new_figure(7.5, 1.0 + 3.0 * min(ratio, 2.5))
            left, right = figure.subplots(1, 2)
        draw_shares(left, shares(mask), region.shape)
        draw_shares(right, shares(mask, rows.tolist(), cols.tolist()), region.shape)
        size = (len(region.cols), len(region.rows))
        right.add_patch(
            Rectangle((0, 0), *size, fill=False, edgecolor=FRAME, linewidth=1.8, clip_on=False)
        )
        left.set_title('as it is')
        right.set_title('rows and columns sorted')
        for axes in (left, right):
            axes.set_xlabel('column (input)')
            axes.set_ylabel('row (output)')
        return figure

    return Picture(
        'reorganised_matrix',
        f'Where the sensitive entries lie: {region.position}',
        f'Each dot is a selected entry of {region.name} ({height:,} x {width:,}); {count:,} of its '
        f'{height * width:,} entries are selected ({100 * count / (height * width):.2f} %). First '
        'as they lie in the weight, then with the rows and columns that hold most in front. All '
        f'selected entries then lie in the framed block of {len(region.rows):,} rows x '
        f'{len(region.cols):,} columns, {100 * covered:.1f} % '
        f'of the matrix, of which {100 * region.density:.0f} % are selected.',
        draw,
        Table(
            ('matrix', 'rows', 'columns', 'selected entries', 'block rows', 'block columns'),
            [(region.name, height, width, count, len(region.rows), len(region.cols))],
        ),
    )


def density_picture(region: Region, mask: Tensor) -> Picture:
    """The share of selected entries of every row and column of a matrix, sorted (Figure 2)."""
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
