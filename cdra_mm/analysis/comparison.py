"""Pictures of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping

from .block_size_chart import block_sizes_picture
from .frontier import frontier_picture
from .overlap import overlap_picture
from .picture import Picture
from .rank_comparison import rank_comparison_picture
from .regions import Region
from .run import Run

__all__ = ['comparison_pictures', 'name_apart']


def comparison_pictures(
    runs: Mapping[str, Run], regions: Mapping[str, list[Region]]
) -> tuple[list[Picture], list[str]]:
    """What can be compared.

    Returns:
        The pictures, and what cannot be shown and why.
    """
    pictures, missing = [], []
    compared = {name: own for name, own in regions.items() if own}
    for name in runs:
        if name not in compared:
            missing.append(
                f'{name} adapts no matrix by rank or entry: it has no blocks to compare.'
            )
    if compared:
        pictures.append(block_sizes_picture(compared, 'comparison'))
    if len(compared) > 1:
        pictures.append(overlap_picture({name: runs[name] for name in compared}, compared))
        layers = max((runs[name].positions.layers for name in compared), key=len)
        pictures.append(rank_comparison_picture(compared, layers))
    scatter, left_out = frontier_picture(runs)
    pictures += [scatter] if scatter is not None else []
    missing += left_out
    missing += [f'{name}: {reason}' for name, run in runs.items() for reason in run.missing]
    return pictures, missing


def name_apart(runs: list[Run]) -> dict[str, Run]:
    """Runs by names that differ: of equal ones, the folder above goes before."""
    names = [run.name for run in runs]
    named: dict[str, Run] = {}
    for run in runs:
        name = run.name
        if names.count(name) > 1:
            name = f'{run.path.resolve().parent.name}/{name}'
        number, first = 2, name
        while name in named:
            name, number = f'{first} ({number})', number + 1
        run.name = name
        named[name] = run
    return named
