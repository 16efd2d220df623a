"""Files of selection masks: numpy archives with one array per weight and budget.

Arrays are named ``b{budget}/{weight}``: int32 ``[O, I, i0, ...]``, the shape of a weight (I = 0 for
a vector) and the flat indices of its selected entries. Names that begin with two underscores are
skipped.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from cdra_mm.core import DataError

__all__ = ['read_masks']


def read_masks(path: Path) -> dict[str, dict[str, Tensor]]:
    """The matrix masks of a file: budget -> weight name -> bool ``[O, I]``.

    Raises:
        DataError: If the file is missing or no mask file.
    """
    budgets: dict[str, dict[str, Tensor]] = defaultdict(dict)
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                budget, _, name = key.partition('/')
                height, width, *indices = file[key].tolist() if name[:2] != '__' else (0, 0)
                if height and width:
                    mask = torch.zeros(height * width, dtype=torch.bool)
                    mask[indices] = True
                    budgets[budget.removeprefix('b')][name] = mask.view(height, width)
    except (OSError, EOFError, ValueError, IndexError, AttributeError, BadZipFile) as error:
        raise DataError(f'{path} is no mask file: {error}') from None
    return dict(budgets)
