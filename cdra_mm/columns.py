"""Tables as text: aligned columns for a terminal or a log, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ['aligned', 'csv_text']


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A head over lines of cells; the first column to the left, the others to the right.

    Args:
        head: A title for each column.
        rows: Their texts, taken as they are: a number is not written anew.

    Example:
        >>> print(aligned(['', 'ms'], [['ours', '1.0'], ['backward', '12.0']]))
                    ms
        --------  ----
        ours       1.0
        backward  12.0
    """
    from tabulate import tabulate  # not for a --help, nor on a bare machine that measures

    sides = ['left', *('right' for _ in head[1:])]
    text = tabulate(
        rows, head, tablefmt='simple', disable_numparse=True, colalign=sides if rows else None
    )
    return '\n'.join(line.rstrip() for line in text.splitlines())


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""A table as CSV; floats so that they read back equal.

    Example:
        >>> csv_text(('layer', 'rank'), [(0, 3)])
        'layer,rank\n0,3\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([header, *rows])
    return text.getvalue()
