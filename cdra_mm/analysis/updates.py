"""What the low-rank adapters have learnt: their singular values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cdra_mm.core.adapters.spectrum import effective_rank, update_spectrum
from cdra_mm.core.artifacts.state_keys import adapter_prefix
from cdra_mm.pictures import WeightPosition, new_figure

from .picture import Picture, Table
from .regions import Region
from .run import Run

__all__ = ['Update', 'spectrum_picture', 'updates_of']


@dataclass(frozen=True)
class Update:
    """The learnt change of one matrix.

    Attributes:
        name: Target name.
        position: Its layer and role.
        values: Singular values of ``scale * up @ down``, largest first; as many as its rank.
    """

    name: str
    position: WeightPosition
    values: tuple[float, ...]

    @property
    def norm(self) -> float:
        """Frobenius norm of the change."""
        return math.hypot(*self.values)


def updates_of(run: Run, regions: list[Region]) -> list[Update]:
    """The changes of the low-rank adapters whose factors are at hand."""
    scales = {block.name: block.scale for block in run.plan.blocks} if run.plan else {}
    found = []
    for region in regions:
        prefix = adapter_prefix(region.name)
        up, down = (run.adapter.get(prefix + side) for side in ('up', 'down'))
        if region.rank and up is not None and down is not None:
            values = update_spectrum(up, down, scales[region.name])
            found.append(Update(region.name, region.position, tuple(values.tolist())))
    return found


def spectrum_picture(updates: list[Update], layers: list[str]) -> Picture:
    """The singular values of every adapter, and how many of them count."""
    ranks = [len(update.values) for update in updates]
    used = [effective_rank(update.values) for update in updates]

    def draw():
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        figure = new_figure(7.5, 3.4)
        left, right = figure.subplots(1, 2)
        shade: Any = ScalarMappable(Normalize(0, max(1, len(layers) - 1)), colormaps['viridis'])
        depth = [
            layers.index(u.position.layer) if u.position.layer in layers else 0 for u in updates
        ]
        # The last layers are pale: drawn first, they hide nothing.
        for update, at in sorted(zip(updates, depth, strict=True), key=lambda pair: -pair[1]):
            top = update.values[0] or 1.0
            heights = [100 * value / top for value in update.values]
            positions = range(1, len(heights) + 1)
            left.plot(positions, heights, color=shade.to_rgba(at), linewidth=0.9, marker='.')
        left.set_xlabel('direction, strongest first')
        left.set_ylabel('singular value (% of the largest)')
        left.set_ylim(0, 104)
        left.set_xlim(0.8, max(ranks) + 0.2)
        left.xaxis.get_major_locator().set_params(integer=True)
        left.grid()
        top = max(ranks) * 1.05
        right.plot([0, top], [0, top], color='black', linewidth=0.8, linestyle='--')
        right.scatter(ranks, used, c=depth, cmap='viridis', norm=shade.norm, s=22)
        right.text(0.04, 0.95, 'dashed: every direction counts the same', fontsize=8,
                   transform=right.transAxes, va='top')  # fmt: skip
        for axis in (right.xaxis, right.yaxis):
            axis.get_major_locator().set_params(integer=True)
        right.set_xlabel('rank of the adapter')
        right.set_ylabel('effective rank')
        right.set_xlim(0, top)
        right.set_ylim(0, top)
        right.grid()
        bar = figure.colorbar(shade, ax=[left, right], fraction=0.03, pad=0.01)
        step = math.ceil(len(layers) / 12)
        bar.set_ticks(list(range(0, len(layers), step)), labels=layers[::step])
        bar.set_label('layer')
        bar.outline.set_visible(False)
        return figure

    share = 100 * sum(used) / sum(ranks)
    return Picture(
        'spectrum',
        'Are the ranks used?',
        'Left: the singular values of each learnt update (up x down), as a share of its largest. '
        'Right: the effective rank, the number of directions that count, against the rank that the '
        f'adapter has. Over all {len(updates)} adapters {sum(used):.1f} of {sum(ranks)} directions '
        f'count ({share:.0f} %).',
        draw,
        Table(
            ('matrix', 'layer', 'kind', 'rank', 'effective rank', 'Frobenius norm', 'direction',
             'singular value'),
            [
                (u.name, u.position.layer, u.position.role, len(u.values), count, u.norm, i, value)
                for u, count in zip(updates, used, strict=True)
                for i, value in enumerate(u.values, 1)
            ],
        ),
        'training',
    )  # fmt: skip
