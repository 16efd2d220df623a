"""A file of selection masks seen as a run: what SPT released, say."""

from __future__ import annotations

from pathlib import Path

from cdra_mm.core import Plan, plan_from_masks
from cdra_mm.errors import ConfigError
from cdra_mm.mm.planning.kept_scores import Kept
from cdra_mm.reading import read_masks

__all__ = ['AT', 'read_mask_file']

AT = '@'  # between the file and the budget


def read_mask_file(path: Path, budget: str) -> tuple[Plan, Kept]:
    """The plan of given masks, with the masks.

    Args:
        path: A file as ``reading.mask_file`` describes it.
        budget: One of its budgets, '' for the only one.

    Returns:
        The plan by the count rule, as Eq. 7 leaves most of such sparse masks without a rank.

    Raises:
        DataError: If it is no mask file.
        ConfigError: If it has no such budget.
    """
    budgets = read_masks(path)
    if not budget and len(budgets) == 1:
        budget = next(iter(budgets))
    if budget not in budgets:
        named = ', '.join(f'{path.name}{AT}{each}' for each in sorted(budgets))
        raise ConfigError(f'{path} holds masks of several budgets: name one of {named}')
    masks = budgets[budget]
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    kept = Kept(masks=masks, row_sums={}, col_sums={}, totals={}, scores={}, shapes=shapes, meta={})
    return plan_from_masks(masks, rank_rule='count'), kept
