"""Positions learnt for another image size, where the backbone does not resize them itself.

mmpretrain's own load hooks resize ``pos_embed`` (bicubic) and are left to it. What remains:
mmseg resizes in ``init_weights`` only and by the file's names, and the interpolation that both use
for BEiT's bias tables, and mmpretrain for Swin's, is gone from SciPy since 1.14.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from math import isqrt

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from cdra_mm.errors import CheckpointError

__all__ = ['check_grid', 'resize_bicubic', 'resize_geometric', 'resize_mmseg_positions',
           'resize_tables_bicubic', 'resize_tables_geometric']  # fmt: skip

Weights = MutableMapping[str, Tensor]
TABLE, INDEX = 'relative_position_bias_table', 'relative_position_index'


def check_grid(name: str, count: int, extra: int) -> int:
    """The side of a square of positions.

    Args:
        name: Whose positions, for the message.
        count: Number of positions in the file.
        extra: Those among them that belong to no place in the image.

    Raises:
        CheckpointError: If they are no square: the file does not say which rectangle.
    """
    side = isqrt(max(count - extra, 0))
    if side == 0 or side * side != count - extra:
        raise CheckpointError(
            f'{name} has {count} positions, {extra} of them for no place in the image: the rest is '
            'no square, so it cannot be resized; build the backbone with the image size of the file'
        )
    return side


def add_extra_positions(backbone: nn.Module, weights: Weights, prefix: str = '') -> None:
    """Gives the class (and distillation) token of a file that has no position for it a zero one.

    timm's ``no_embed_class`` models (DeiT-III) add positions to the patches alone.
    """
    name = f'{prefix}pos_embed'
    given, own = weights.get(name), getattr(backbone, 'pos_embed', None)
    extra = getattr(backbone, 'num_extra_tokens', 1)
    if own is None or given is None or given.dim() != 3 or not extra:
        return
    count, width = given.shape[1:]
    if count == own.shape[1] or isqrt(count) ** 2 != count:
        return
    side = isqrt(count)
    print_log(f'{name}: {count} positions taken as {side} x {side} patches', logger='current')
    weights[name] = torch.cat([given.new_zeros(1, extra, width), given], 1)


def resize_mmpretrain_beit(backbone: nn.Module, weights: Weights, prefix: str = '') -> None:
    """What mmpretrain's BEiT does not resize itself."""
    add_extra_positions(backbone, weights, prefix)
    resize_tables_geometric(backbone, weights, prefix)


def resize_mmseg_positions(backbone: BaseModule, weights: Weights, prefix: str = '') -> None:
    """Brings ``pos_embed`` to the image size of mmseg's ViT, with its own function."""
    add_extra_positions(backbone, weights, prefix)
    name = f'{prefix}pos_embed'
    given, own = weights.get(name), backbone.pos_embed
    if given is None or given.dim() != 3 or given.shape[1] == own.shape[1]:
        return
    side = check_grid(name, given.shape[1], 1)
    grid = tuple(length // backbone.patch_size for length in backbone.img_size)
    weights[name] = backbone.resize_pos_embed(
        given.float(), grid, (side, side), backbone.interpolate_mode
    ).to(given.dtype)


def resize_tables_geometric(backbone: nn.Module, weights: Weights, prefix: str = '') -> None:
    """Brings tables of relative positions to the backbone's windows, as BEiT's authors do."""
    _resize_tables(backbone, weights, prefix, resize_geometric)


def resize_tables_bicubic(backbone: nn.Module, weights: Weights, prefix: str = '') -> None:
    """Brings tables of relative positions to the backbone's windows, as Swin's authors do."""
    _resize_tables(backbone, weights, prefix, resize_bicubic)


def _resize_tables(
    backbone: nn.Module,
    weights: Weights,
    prefix: str,
    resize: Callable[[Tensor, tuple[int, int]], Tensor],
) -> None:
    for path, module in backbone.named_modules():
        own = getattr(module, TABLE, None)
        name = f'{prefix}{path}.{TABLE}'
        given = weights.get(name)
        if own is None or given is None or given.shape[0] == own.shape[0] or given.dim() != 2:
            continue
        height, width = (2 * length - 1 for length in module.window_size)
        extra = own.shape[0] - height * width
        side = check_grid(name, given.shape[0], extra)
        heads = given.shape[1]
        grid = given[: side * side].T.reshape(heads, side, side)
        resized = resize(grid, (height, width)).reshape(heads, -1).T
        weights[name] = torch.cat([resized.to(given.dtype), given[side * side :]])
        # The index of another window would be loaded over the right one.
        weights[f'{prefix}{path}.{INDEX}'] = getattr(module, INDEX)


def resize_bicubic(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic interpolation of a table, ``[heads, h, w]`` to ``[heads, *size]``."""
    return F.interpolate(grid[None].float(), size=size, mode='bicubic')[0]


def resize_geometric(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """A table of relative positions for another window, the way of BEiT (Bao et al., 2022).

    Distances of the old table are stretched in a geometric series: the centre, which matters most,
    keeps its scale, and the longest distance becomes the new longest. Between them runs a cubic
    spline.

    Args:
        grid: One table a head, ``[heads, h, w]``, h and w odd.
        size: The new height and width, both odd.

    Returns:
        ``[heads, *size]``, float32.
    """
    from scipy.interpolate import RectBivariateSpline  # mmseg brings SciPy along

    rows, cols = (_stretched(old, new) for old, new in zip(grid.shape[1:], size, strict=True))
    new_rows, new_cols = (np.arange(length) - length // 2 for length in size)
    tables = [
        RectBivariateSpline(rows, cols, table, kx=min(3, len(rows) - 1), ky=min(3, len(cols) - 1))(
            new_rows.clip(rows[0], rows[-1]), new_cols.clip(cols[0], cols[-1])
        )
        for table in grid.double().cpu().numpy()
    ]
    return torch.from_numpy(np.stack(tables)).float()


def _stretched(old: int, new: int) -> np.ndarray:
    """Where the ``old`` distances of a table stand among the ``new`` ones, ``[old]``."""
    low, high = 1.01, 1.5  # the original's bounds of the series' ratio
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2:
            high = ratio
        else:
            low = ratio
    steps = np.cumsum(ratio ** np.arange(old // 2))
    return np.concatenate([-steps[::-1], [0.0], steps])
