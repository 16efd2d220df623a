"""Painted predictions of a test run, whatever visualizer its config has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from cdra_mm.errors import ConfigError

__all__ = ['paint_predictions', 'without_backends']

# mmengine's own: it knows nothing of segmentations and classes.
PLAIN = 'Visualizer'
ON_DISK = 'LocalVisBackend'


@dataclass(frozen=True)
class _Painter:
    """What paints in one package: a visualizer, and the hook that calls it."""

    visualizer: str
    hook: Mapping[str, Any]


PAINTERS = {
    'mmseg': _Painter('SegLocalVisualizer', dict(type='SegVisualizationHook', draw=True)),
    'mmpretrain': _Painter(
        'UniversalVisualizer', dict(type='cdra_mm.mm.numbered_pictures.NumberedPictures')
    ),
}


def paint_predictions(cfg: Config, folder: str) -> None:
    """Has a test run paint its predictions into a folder.

    The config's own visualizer does it. Where it has none, or mmengine's plain one, its package's
    takes the place; a back end that writes files is added where there is none.

    Raises:
        ConfigError: If the config is of no package that paints.
    """
    painter = PAINTERS.get(cfg.get('default_scope') or '')
    if painter is None:
        raise ConfigError(f'--show-dir is for mmseg and mmpretrain, not {cfg.get("default_scope")}')
    visualizer = dict(cfg.get('visualizer') or {})
    if visualizer.get('type', PLAIN) == PLAIN:
        visualizer['type'] = painter.visualizer
    hook = dict(painter.hook)
    if cfg.default_scope == 'mmseg':  # whose hook leaves the files to the visualizer
        visualizer['save_dir'] = folder
        backends = list(visualizer.get('vis_backends') or ())
        if not any(backend.get('type') == ON_DISK for backend in backends):
            backends.append(dict(type=ON_DISK))
        visualizer['vis_backends'] = backends
    else:
        hook |= dict(enable=True, out_dir=folder)
    cfg.visualizer = visualizer
    hooks = dict(cfg.get('default_hooks') or {})
    # Every image, unless the config says otherwise: mmpretrain's default is one of 5000.
    own = {'interval': 1, **(hooks.get('visualization') or {})}
    cfg.default_hooks = {**hooks, 'visualization': {**own, **hook}}


def without_backends(cfg: Config) -> None:
    """Has a run show nothing anywhere, in place; a config need not have a visualizer."""
    cfg.visualizer = {'type': PLAIN, **(cfg.get('visualizer') or {}), 'vis_backends': []}
