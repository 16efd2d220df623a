"""Files of selection masks: numpy archives with one array per weight and budget.

Arrays are named ``b{budget}/{weight}``: int32 ``[O, I, i0, ...]``, the shape of a weight (I = 0 for
a vector) and the flat indices of its selected entries. Names that begin with two underscores are
skipped.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdra_mm.errors import CheckpointError, DataError

from .numpy_file import read_npz

__all__ = ['read_masks']

MOST_ENTRIES = 1 << 31  # of a matrix: what its indices can count


def read_masks(path: Path) -> dict[str, dict[str, Tensor]]:
    """The matrix masks of a file: budget -> weight name -> bool ``[O, I]``.

    Raises:
        DataError: If the file is missing or no mask file.
    """
    budgets: dict[str, dict[str, Tensor]] = defaultdict(dict)
    try:
        for key, array in read_npz(path, 'mask file'):
            budget, _, name = key.partition('/')
            if name[:2] == '__':
                continue
            mask = _mask(array, f'{path}: {key[:80]}')
            if mask is not None:
                budgets[budget.removeprefix('b')][name] = mask
    except CheckpointError as error:
        raise DataError(str(error)) from None
    return dict(budgets)


def _mask(array: Any, what: str) -> Tensor | None:
    """The mask of a matrix, None for a vector."""
    if array.ndim != 1 or array.dtype.kind not in 'iu' or len(array) < 2:
        raise DataError(f'{what} is no mask: expected whole numbers, the shape and the indices')
    height, width = int(array[0]), int(array[1])
    if not width:
        return None
    if height < 1 or width < 0 or height * width > MOST_ENTRIES:
        raise DataError(f'{what} is no mask: its matrix would be {height} x {width}')
    indices = torch.from_numpy(array[2:].astype('int64'))
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < height * width:
        raise DataError(f'{what} is no mask: it selects entries outside of its matrix')
    mask = torch.zeros(height * width, dtype=torch.bool)
    mask[indices] = True
    return mask.view(height, width)
