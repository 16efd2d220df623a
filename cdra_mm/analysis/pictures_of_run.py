"""Every picture that a run has something for, and why the others are not there."""

from __future__ import annotations

from cdra_mm.errors import ConfigError

from .block_grid import block_grid_picture
from .block_size_chart import block_sizes_picture
from .change import base_norms, change_picture, matrix_changes
from .maps import parameter_map, rank_map, sensitivity_map
from .one_matrix import density_picture, reorganised_picture
from .picture import Picture
from .regions import Region, find_region, mask_of, middle_region
from .run import Run
from .updates import spectrum_picture, updates_of

__all__ = ['learnt_pictures', 'plan_pictures']


def plan_pictures(run: Run, regions: list[Region], matrix: str | None = None) -> list[Picture]:
    """Pictures of what is tuned. What cannot be shown is noted in ``run.missing``.

    Args:
        run: The run.
        regions: Its regions.
        matrix: The matrix of the first two pictures; default: the one whose block has the median
            size.

    Raises:
        ConfigError: If the plan does not touch the matrix.
    """
    if run.plan is None:
        if matrix is not None:
            raise ConfigError(f'matrix {matrix!r}: {run.path} has no plan to look it up in')
        return []
    pictures = []
    chosen = find_region(regions, matrix) if matrix is not None else middle_region(regions)
    if chosen is None:
        run.missing.append(
            f'There are no blocks to show: {run.method} adapts no matrix by rank or entry.'
        )
    else:
        pictures += _of_one_matrix(run, chosen)
        pictures += [block_grid_picture(run, regions), block_sizes_picture({run.name: regions})]
    if any(region.rank is not None for region in regions):
        pictures.append(rank_map(run.plan, run.positions))
    if run.plan.num_trainable:
        pictures.append(parameter_map(run.plan, run.positions))
    else:
        run.missing.append(f'Nothing of the backbone is trained by {run.method}: there is no map.')
    if run.kept is not None and run.kept.totals:
        pictures.append(sensitivity_map(run.kept, run.positions))
    return pictures


def _of_one_matrix(run: Run, region: Region) -> list[Picture]:
    mask = mask_of(run, region.name)
    if mask is not None and bool(mask.any()):
        return [reorganised_picture(region, mask), density_picture(region, mask)]
    if run.plan is not None and run.plan.num_sensitive:
        run.missing.append(
            'Which entries are sensitive was not kept, so a matrix before and after reorganising, '
            'the density of its rows and columns, and the summed sensitivity cannot be shown: '
            "train with CDRAHook(keep_scores='masks')."
        )
    else:
        run.missing.append(
            f'{run.method} does not choose among entries: there is nothing to reorganise.'
        )
    return []


def learnt_pictures(run: Run, regions: list[Region]) -> list[Picture]:
    """Pictures of what was learnt. What cannot be shown is noted in ``run.missing``."""
    pictures = []
    updates = updates_of(run, regions)
    if updates:
        pictures.append(spectrum_picture(updates, run.positions.layers))
    changes = matrix_changes(run, regions, updates)
    if changes:
        pictures.append(change_picture(run, changes, base_norms(run, list(changes))))
    if run.adapter and not changes:
        run.missing.append(
            f'{run.method} changes no matrix by a low-rank update or by single entries: spectrum '
            'and change of the weights do not apply.'
        )
    return pictures
