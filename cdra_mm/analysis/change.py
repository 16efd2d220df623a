"""How far the weights have moved from the base."""

from __future__ import annotations

import math

from mmengine.registry import MODELS
from torch import nn

from cdra_mm.core import resolve
from cdra_mm.core.artifacts.state_keys import adapter_prefix
from cdra_mm.core.model.targets import parameter_of, view_of
from cdra_mm.errors import CheckpointError
from cdra_mm.mm.backbone import PREFIX, attach_loader
from cdra_mm.mm.checkpoints.base_source import named_bases
from cdra_mm.mm.checkpoints.restoring import ensure_base
from cdra_mm.mm.compatibility import load_checkpoint
from cdra_mm.mm.launch import plain_config
from cdra_mm.mm.packages import set_default_scope
from cdra_mm.pictures.plan_map import map_values

from .maps import map_picture
from .picture import Picture
from .regions import Region
from .run import Run
from .updates import Update

__all__ = ['base_norms', 'change_picture', 'matrix_changes']


def matrix_changes(run: Run, regions: list[Region], updates: list[Update]) -> dict[str, float]:
    """Frobenius norm of what was added to each matrix, low rank or single entries."""
    changes = {update.name: update.norm for update in updates}
    for region in regions:
        value = run.adapter.get(adapter_prefix(region.name) + 'value')
        if region.rank is None and value is not None:
            changes[region.name] = math.hypot(*value.double().tolist())
    return changes


def base_norms(run: Run, names: list[str]) -> dict[str, float]:
    """Frobenius norms of base matrices, from the base weights that the checkpoint names.

    Args:
        run: A run with a config and a checkpoint.
        names: Target names.

    Returns:
        The norms; {} where the base is not at hand, which is noted in ``run.missing``.
    """
    if run.config is None or run.base_record is None:
        run.missing.append(
            'Changes are shown as they are, not relative to the base weights: that needs the '
            'checkpoint and the config of the run.'
        )
        return {}
    try:
        set_default_scope(run.config)
        backbone = MODELS.build(plain_config(run.config).model.backbone)
        _fill(backbone, run)
    except Exception as error:  # the config is the user's own program
        reason = ' '.join(str(error).split())[:300]
        run.missing.append(
            f'Changes are shown as they are, not relative to the base weights: {reason}'
        )
        return {}
    norms = {}
    for name in names:
        target = resolve(backbone, name)
        norms[name] = float(view_of(target, parameter_of(backbone, target)).detach().norm())
    return norms


def _fill(backbone: nn.Module, run: Run) -> None:
    """Brings the base in: from the checkpoint where it holds it, else from where it came."""
    record = run.base_record
    if record is not None and record.left_out:
        attach_loader(backbone, named_bases(run.config or {}))
        ensure_base(backbone, record)
        return
    loaded = load_checkpoint(str(run.checkpoint))['state_dict']
    own = {key.removeprefix('module.').removeprefix(PREFIX): v for key, v in loaded.items()}
    missing = backbone.load_state_dict(own, strict=False).missing_keys
    if missing:
        raise CheckpointError(f'{run.checkpoint} lacks {missing[0]}')


def change_picture(run: Run, changes: dict[str, float], norms: dict[str, float]) -> Picture:
    """A map of the changes, relative to the base where its norms are known."""
    if norms:
        values = {name: 100 * change / norms[name] for name, change in changes.items()}
        title, unit = 'Change of the weights (%)', '% of the base norm'
        of = 'as a share of the Frobenius norm of the base matrix'
        most = max(values, key=lambda name: values[name])
        largest = f'{values[most]:.2g} %'
    else:
        values, title, unit = changes, 'Change of the weights', 'Frobenius norm'
        of = 'not relative to the base matrix, whose weights are not at hand'
        most = max(values, key=lambda name: values[name])
        largest = f'{values[most]:.2g}'
    return map_picture(
        'map_change',
        map_values(values, title, unit, run.positions),
        f'The Frobenius norm of what training has added to each matrix, {of}. The largest is '
        f'{largest}, in {run.positions[most]}.',
        'training',
    )
