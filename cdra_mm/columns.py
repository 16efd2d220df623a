"""Text in aligned columns, for a terminal or a log."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ['aligned']


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
    from tabulate import tabulate  # not for a --help

    sides = ['left', *('right' for _ in head[1:])]
    text = tabulate(
        rows, head, tablefmt='simple', disable_numparse=True, colalign=sides if rows else None
    )
    return '\n'.join(line.rstrip() for line in text.splitlines())
