"""Maps by layer and kind of weight: ranks, trainable parameters, sensitivity, change."""

from __future__ import annotations

from typing import Any

from cdra_mm.core import Plan
from cdra_mm.mm.planning.kept_scores import Kept
from cdra_mm.pictures import PlanMap, draw_map, map_of
from cdra_mm.pictures.plan_map import map_values
from cdra_mm.pictures.weight_positions import WeightPositions

from .picture import Picture, Table

__all__ = ['map_picture', 'parameter_map', 'rank_map', 'sensitivity_map']


def rank_map(plan: Plan, positions: WeightPositions) -> Picture:
    """Where the ranks went."""
    plan_map = map_of(plan, 'ranks', positions)
    return map_picture(
        'map_ranks',
        plan_map,
        'The rank of every adapted matrix. A grey cell has nothing selected; rank 0 is a matrix '
        'that stays frozen, because it holds too few selected entries for an adapter.',
    )


def parameter_map(plan: Plan, positions: WeightPositions) -> Picture:
    """Where the trainable parameters are."""
    plan_map = map_of(plan, 'parameters', positions)
    outside = (
        f' Another {plan_map.outside:,.0f} belong to no layer (tokens, embeddings).'
        if plan_map.outside
        else ''
    )
    return map_picture(
        'map_parameters',
        plan_map,
        f'How many parameters are trained in each place, {plan.num_trainable:,} in all.' + outside,
    )


def sensitivity_map(kept: Kept, positions: WeightPositions) -> Picture:
    """Where the sensitivity is; asks for kept scores."""
    title, unit = 'Summed sensitivity', 'squared gradient'
    plan_map = map_values(kept.totals, title, unit, positions)
    signed = kept.meta.get('statistic') == 'mean_gradient'
    what = 'squared mean' if signed else 'mean squared'
    return map_picture(
        'map_sensitivity',
        plan_map,
        f'The sum of the sensitivity scores ({what} gradient of the loss) of all entries in '
        'each place, selected or not.',
    )


def map_picture(name: str, plan_map: PlanMap, caption: str, group: str = 'plan') -> Picture:
    """A map with its numbers.

    Args:
        name: Stem of its files.
        plan_map: The map.
        caption: What it shows.
        group: Where it belongs.
    """
    rows: list[tuple[Any, ...]] = [
        (role, layer, value)
        for role in plan_map.roles
        for layer in plan_map.layers
        if (value := plan_map.values.get((role, layer))) is not None
    ]
    if plan_map.outside:
        rows.append(('outside the layers', None, plan_map.outside))
    return Picture(
        name,
        f'{plan_map.title} by layer and kind of weight',
        caption,
        lambda: draw_map(plan_map),
        Table(('kind', 'layer', plan_map.unit), rows),
        group,
    )
