"""Ranks and paired standard errors, slowly and obviously."""

from __future__ import annotations

import math
from collections.abc import Mapping


def slow_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """One, plus one for each that is better, plus a half for each other that is equal."""
    found = {}
    for name, value in values.items():
        rank = 1.0
        for other, theirs in values.items():
            if theirs > value:
                rank += 1
            elif theirs == value and other != name:
                rank += 0.5
        found[name] = rank
    return found


def slow_error_of_mean(values: list[float]) -> float:
    """The sample deviation by the root of the number, written out."""
    n = len(values)
    total = 0.0
    for value in values:
        total += value
    average = total / n
    squares = 0.0
    for value in values:
        squares += (value - average) * (value - average)
    return math.sqrt(squares / (n - 1)) / math.sqrt(n)
