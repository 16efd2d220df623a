"""A matrix before and after its rows and columns are reorganised (the paper's Figure 1)."""

from __future__ import annotations

from torch import Tensor

from cdra_mm.core.planning.compaction import ordered_sides
from cdra_mm.pictures import FRAME, new_figure

from .picture import Picture, Table
from .regions import Region
from .shares import draw_shares, shares

__all__ = ['reorganised_picture']


def reorganised_picture(region: Region, mask: Tensor) -> Picture:
    """The selected entries of one matrix as they lie, and sorted so that the block shows.

    Args:
        region: The matrix.
        mask: Its selected entries, bool ``[O, I]``.
    """
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
