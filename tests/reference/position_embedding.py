"""Position embeddings of another image size, one entry at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def resize(positions: Tensor, extra: int, size: tuple[int, int]) -> Tensor:
    """``[1, extra + side * side, E]`` to ``[1, extra + h * w, E]``, bicubic (a = -0.75).

    A pixel's centre lies at its index plus one half; beyond the border the last pixel goes on.
    """
    side = math.isqrt(positions.shape[1] - extra)
    grid = positions[0, extra:].double().reshape(side, side, -1)
    rows = torch.zeros(size[0], side, dtype=torch.float64)
    cols = torch.zeros(size[1], side, dtype=torch.float64)
    for weights, length in ((rows, size[0]), (cols, size[1])):
        for new in range(length):
            place = (new + 0.5) * side / length - 0.5
            first = math.floor(place) - 1
            for old in range(first, first + 4):
                weights[new, min(max(old, 0), side - 1)] += _cubic(place - old)
    resized = torch.einsum('ys,xt,ste->yxe', rows, cols, grid)
    extras = positions[0, :extra].double()
    return torch.cat([extras, resized.flatten(0, 1)])[None]


def _cubic(distance: float, a: float = -0.75) -> float:
    """Keys' kernel (1981)."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def resize_table(table: Tensor, size: tuple[int, int]) -> Tensor:
    """One head's table of relative positions ``[h, w]`` for other windows, the way of BEiT.

    Old distances 1, 2, 3 ... move to 1, 1 + q, 1 + q + q^2 ... with the q in [1.01, 1.5] that
    brings the longest nearest to the new longest; between them a cubic spline that is the same
    polynomial on both sides of the second and of the last but one place ("not a knot").
    """
    values = table.double().numpy()
    for axis in (0, 1):
        places = _places(values.shape[axis], size[axis])
        wanted = [t - size[axis] // 2 for t in range(size[axis])]
        values = np.apply_along_axis(lambda y, p=places, w=wanted: _spline(p, y, w), axis, values)
    return torch.from_numpy(values)


def _places(old: int, new: int) -> list[float]:
    def longest(q: float) -> float:
        return sum(q**k for k in range(old // 2))

    low, high = 1.01, 1.5
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if longest(middle) > new // 2 else (middle, high)
    half = [sum(low**k for k in range(n)) for n in range(1, old // 2 + 1)]
    return [-x for x in reversed(half)] + [0.0] + half


def _spline(x: list[float], y: np.ndarray, wanted: list[int]) -> list[float]:
    """Piecewise cubics a + b t + c t^2 + d t^3 from one dense system of their coefficients."""
    pieces = len(x) - 1
    rows, right = [], []

    def row(*entries: tuple[int, list[float]], value: float = 0.0) -> None:
        line = np.zeros(4 * pieces)
        for piece, numbers in entries:
            line[4 * piece : 4 * piece + 4] += numbers
        rows.append(line)
        right.append(value)

    for i in range(pieces):
        h = x[i + 1] - x[i]
        row((i, [1, 0, 0, 0]), value=y[i])
        row((i, [1, h, h**2, h**3]), value=y[i + 1])
        if i + 1 < pieces:
            row((i, [0, 1, 2 * h, 3 * h**2]), (i + 1, [0, -1, 0, 0]))
            row((i, [0, 0, 2, 6 * h]), (i + 1, [0, 0, -2, 0]))
    row((0, [0, 0, 0, 1]), (1, [0, 0, 0, -1]))
    row((pieces - 2, [0, 0, 0, 1]), (pieces - 1, [0, 0, 0, -1]))
    found = np.linalg.solve(np.array(rows), np.array(right)).reshape(pieces, 4)
    results = []
    for place in wanted:
        place = min(max(place, x[0]), x[-1])
        i = max(k for k in range(pieces) if x[k] <= place)
        t = place - x[i]
        results.append(float(found[i] @ [1, t, t**2, t**3]))
    return results
