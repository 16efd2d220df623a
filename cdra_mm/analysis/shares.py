"""A mask as an image small enough to draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

__all__ = ['draw_shares', 'shares']

PIXELS = 360  # of a side at most: no screen shows the entries of a large matrix one by one


def shares(
    mask: Tensor, rows: Sequence[int] | None = None, cols: Sequence[int] | None = None
) -> np.ndarray:
    """The share of selected entries in each pixel.

    Args:
        mask: Bool ``[O, I]``.
        rows: Rows in the order to draw them, all of them or a part; default: as they are.
        cols: Columns, likewise.

    Returns:
        fp32 ``[min(O, 360), min(I, 360)]``, each number in [0, 1].
    """
    array = mask.numpy()
    if rows is not None:
        array = array[np.asarray(rows)]
    if cols is not None:
        array = array[:, np.asarray(cols)]
    for axis in (0, 1):
        size = array.shape[axis]
        if size > PIXELS:
            edges = np.linspace(0, size, PIXELS + 1).astype(int)
            sums = np.add.reduceat(array, edges[:-1], axis=axis, dtype=np.float32)
            widths = np.diff(edges).astype(np.float32)
            array = sums / (widths[:, None] if axis == 0 else widths)
    return array.astype(np.float32)


def draw_shares(axes, image: np.ndarray, shape: tuple[int, int]) -> None:
    """Draws shares so that the axes count rows and columns of the matrix, the first row on top.

    Args:
        axes: matplotlib's axes.
        image: See `shares`.
        shape: Rows and columns that the image covers.
    """
    from matplotlib.colors import PowerNorm

    # Single entries stay visible beside dense rows: colour grows with the square root.
    axes.imshow(
        image,
        cmap='Blues',
        norm=PowerNorm(0.5, vmin=0, vmax=max(float(image.max()), 1e-6)),
        extent=(0, shape[1], shape[0], 0),
        aspect='equal',
        interpolation='antialiased',
    )
    axes.spines[:].set_visible(True)
