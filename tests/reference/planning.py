"""What a plan trains, and the best plan within a budget, by trying every threshold."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from torch import Tensor

from .compaction import compact
from .ranks import dynamic_rank
from .selection import top_k


def block_sizes(
    masks: Mapping[str, Tensor], rule: str | int, min_rank: int, alpha: float = 1
) -> dict[str, tuple]:
    """Rows, columns and rank of every matrix with a selected entry, by name."""
    sizes = {}
    for name, mask in masks.items():
        if mask.dim() == 2 and mask.any():
            rows, cols = compact(mask)
            rank = dynamic_rank(
                int(mask.sum()),
                len(rows),
                len(cols),
                tuple(mask.shape),
                rule=rule,
                min_rank=min_rank,
                alpha=alpha,
            )
            sizes[name] = (rows, cols, rank)
    return sizes


def vector_sizes(masks: Mapping[str, Tensor], beta: float) -> dict[str, list[int] | None]:
    """Trained entries of every vector with a selected one, by name; ``None`` = all of them."""
    sizes: dict[str, list[int] | None] = {}
    for name, mask in masks.items():
        if mask.dim() == 1 and mask.any():
            chosen = [i for i, selected in enumerate(mask.tolist()) if selected]
            sizes[name] = None if len(chosen) * beta >= len(mask) else chosen
    return sizes


def num_trainable(
    masks: Mapping[str, Tensor],
    *,
    rule: str | int = 'eq7',
    min_rank: int = 0,
    beta: float = 5,
    also_train: Mapping[str, int] | None = None,
    alpha: float = 1,
) -> int:
    """Parameters that the plan of these masks trains."""
    total = sum((also_train or {}).values())
    for rows, cols, rank in block_sizes(masks, rule, min_rank, alpha).values():
        total += rank * (len(rows) + len(cols))
    for name, chosen in vector_sizes(masks, beta).items():
        total += len(masks[name]) if chosen is None else len(chosen)
    return total


def thresholds(scores: Mapping[str, Tensor]) -> list[int]:
    """How many entries each threshold selects: equal scores are selected together."""
    values = [value for score in scores.values() for value in score.flatten().tolist()]
    return [sum(value >= least for value in values) for least in sorted(set(values), reverse=True)]


def edges(scores: Mapping[str, Tensor]) -> list[int]:
    """How many entries each threshold of 16 significant bits selects."""
    values = [value for score in scores.values() for value in score.flatten().tolist()]
    halves = [struct.pack('>f', value)[:2] for value in values]
    return [sum(half >= least for half in halves) for least in sorted(set(halves), reverse=True)]


def plan_sizes(scores: Mapping[str, Tensor], counts: list[int] | None = None, **rules) -> list[int]:
    """Parameters of the plan of every threshold, or count, that adapts at least one matrix."""
    sizes = []
    for count in thresholds(scores) if counts is None else counts:
        masks = top_k(scores, count)
        given = rules.get('rule', 'eq7'), rules.get('min_rank', 0), rules.get('alpha', 1)
        blocks = block_sizes(masks, *given)
        if any(rank for _, _, rank in blocks.values()):
            sizes.append(num_trainable(masks, **rules))
    return sizes


def within_budget(scores: Mapping[str, Tensor], budget: int, **rules) -> int | None:
    """Most parameters that a plan trains within ``budget``; ``None`` where none fits.

    ``rules`` may hold ``counts``, the numbers of entries to try.
    """
    return max((size for size in plan_sizes(scores, **rules) if size <= budget), default=None)


def smallest_budget(scores: Mapping[str, Tensor], **rules) -> int | None:
    """Parameters of the smallest plan; ``None`` where no threshold gives one."""
    return min(plan_sizes(scores, **rules), default=None)
