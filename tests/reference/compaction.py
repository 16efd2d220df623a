"""Eq. 4 by counting in loops."""

from __future__ import annotations

from torch import Tensor


def compact(mask: Tensor) -> tuple[list[int], list[int]]:
    """Rows and columns with a selected entry, fullest first, ties by index."""
    table = mask.tolist()
    in_row = [sum(row) for row in table]
    in_col = [sum(row[j] for row in table) for j in range(len(table[0]))]

    def order(counts: list[int]) -> list[int]:
        touched = [i for i, count in enumerate(counts) if count > 0]
        return sorted(touched, key=lambda i: (-counts[i], i))

    return order(in_row), order(in_col)
