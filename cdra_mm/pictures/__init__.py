"""What a plan looks like: how pictures are drawn, where a weight sits, and the maps of a plan.

Shared by the report and by what training shows, so it knows no OpenMMLab. matplotlib is loaded when
the first figure is made.
"""

from .plan_map import MAPS, PlanMap, draw_map, map_of
from .style import (
    COLOURS,
    FRAME,
    GREY,
    INK,
    SEQUENCE,
    colour_of,
    new_figure,
    pixels_of,
    render,
    styled,
)
from .weight_positions import WeightPosition, WeightPositions

__all__ = [
    'COLOURS',
    'FRAME',
    'GREY',
    'INK',
    'MAPS',
    'SEQUENCE',
    'WeightPosition',
    'WeightPositions',
    'PlanMap',
    'colour_of',
    'draw_map',
    'map_of',
    'new_figure',
    'pixels_of',
    'render',
    'styled',
]
