"""Compact blocks of different kinds and layers (the paper's Figure 4)."""

from __future__ import annotations

import math

from cdra_mm.pictures import FRAME, new_figure

from .picture import Picture, Table
from .regions import Region, mask_of
from .run import Run
from .shares import draw_shares, shares

__all__ = ['block_grid_picture', 'spread']

SHOWN, COLUMNS = 8, 4


def block_grid_picture(run: Run, regions: list[Region]) -> Picture:
    """A grid of blocks inside their matrices, drawn to scale."""
    chosen = spread(regions, SHOWN)
    with_masks = any(mask_of(run, region.name) is not None for region in chosen)

    def draw():
        from matplotlib.patches import Rectangle

        lines = math.ceil(len(chosen) / COLUMNS)
        tallest = max(region.shape[0] / region.shape[1] for region in chosen)
        figure = new_figure(7.5, (1.15 + 1.5 * min(max(tallest, 0.25), 1.2)) * lines)
        panels = figure.subplots(lines, COLUMNS, squeeze=False).flatten()
        for axes in panels[len(chosen) :]:
            axes.set_visible(False)
        for axes, region in zip(panels, chosen, strict=False):
            mask, (height, width) = mask_of(run, region.name), region.shape
            axes.set_facecolor('#FAFAFA')
            if mask is not None:
                rows = _with_rest(region.rows, height)
                cols = _with_rest(region.cols, width)
                draw_shares(axes, shares(mask, rows, cols), region.shape)
            axes.set_xlim(0, width)
            axes.set_ylim(height, 0)
            axes.set_aspect('equal')
            frame = Rectangle((0, 0), len(region.cols), len(region.rows), clip_on=False)
            frame.set(
                edgecolor=FRAME, linewidth=1.5, facecolor='none' if mask is not None else '#FBE3D0'
            )
            axes.add_patch(frame)
            axes.spines[:].set_visible(True)
            axes.set_xticks([0, width])
            axes.set_yticks([0, height])
            axes.set_title(_two_lines(region), fontsize=8)
            axes.set_xlabel(_label(region), fontsize=8)
        return figure

    selected = any(region.num_selected for region in chosen)
    inside = 'dots are selected entries' if with_masks else 'which entries in it was not kept'
    frame = f'holds what is selected; {inside}' if selected else 'is adapted'
    share = 'the share of it that is selected, ' if selected else ''
    return Picture(
        'blocks',
        'Compact blocks of different layers',
        f'{len(chosen)} of the {len(regions)} matrices that the plan touches, to scale, with rows '
        f'and columns sorted. The frame is the block that {frame}. Below '
        f'each: rows x columns of the block, {share}and how it is trained.',
        draw,
        Table(
            ('matrix', 'layer', 'kind', 'rows', 'columns', 'block rows', 'block columns',
             'selected entries', 'share of block selected', 'rank', 'trainable parameters',
             'shown'),
            [
                (r.name, r.position.layer, r.position.role, *r.shape, len(r.rows), len(r.cols),
                 r.num_selected, r.density, r.rank, r.num_params, r in chosen)
                for r in regions
            ],
        ),
    )  # fmt: skip


def spread(regions: list[Region], count: int) -> list[Region]:
    """Some regions from all over: the kinds in turn, from the first layer to the last.

    Args:
        regions: All, in network order; those that are trained are preferred.
        count: How many to choose.
    """
    trained = [region for region in regions if region.rank != 0]
    by_role: dict[str, list[Region]] = {}
    for region in trained if len(trained) >= COLUMNS else regions:
        by_role.setdefault(region.position.role, []).append(region)
    kinds = list(by_role.values())
    chosen: set[str] = set()
    for i in range(count):
        members = [region for region in kinds[i % len(kinds)] if region.name not in chosen]
        if members:
            at = round(i / max(1, count - 1) * (len(members) - 1))
            chosen.add(members[at].name)
    return [region for region in regions if region.name in chosen]


def _with_rest(first: tuple[int, ...], size: int) -> list[int]:
    held = set(first)
    return [*first, *(i for i in range(size) if i not in held)]


def _two_lines(region: Region) -> str:
    position = region.position
    return f'layer {position.layer}\n{position.role}' if position.layer else position.role


def _label(region: Region) -> str:
    size = f'{len(region.rows):,} x {len(region.cols):,}'
    share = f', {100 * region.density:.0f} %' if region.num_selected else ''
    return f'{size}{share}\n{region.treatment}'
