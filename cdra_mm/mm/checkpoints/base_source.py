"""Where a frozen base came from: how a run has loaded it, and what a config names.

OpenMMLab loads pretrained weights in three ways: the backbone's own ``init_cfg``, the model's
``init_cfg``, and ``load_from``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.runner import Runner
from torch import nn

from cdra_mm.errors import CheckpointError

from ..host.runner_parts import is_resumed, loaded_from
from .keys import PREFIX

__all__ = ['BaseSource', 'find_source', 'named_bases', 'own_source']

KINDS = ('init_cfg', 'checkpoint')


@dataclass(frozen=True)
class BaseSource:
    """How the base weights were loaded.

    Attributes:
        kind: ``'init_cfg'`` (the backbone's own) or ``'checkpoint'`` (of a whole model).
        path: Path or address of the file.
        prefix: Prefix of the backbone's keys in it, '' for none.
    """

    kind: str
    path: str
    prefix: str = ''

    def __post_init__(self) -> None:
        texts = (self.kind, self.path, self.prefix)
        if not all(isinstance(text, str) for text in texts) or self.kind not in KINDS:
            raise CheckpointError(
                f'{texts!r:.200} is no base: expected a kind ({" or ".join(KINDS)}), a path or '
                'address and a prefix'
            )

    @property
    def is_address(self) -> bool:
        """Whether it is anything but a path of this machine: http, a storage, a hub."""
        return '://' in self.path

    def describe(self) -> str:
        """For messages."""
        return repr(self.path) + (f' (prefix {self.prefix!r})' if self.prefix else '')


def find_source(runner: Runner, model: nn.Module, backbone: nn.Module) -> BaseSource | None:
    """How this run loaded its base weights, None if it did not.

    Args:
        runner: A runner that has loaded its weights.
        model: Its plain model.
        backbone: The backbone in it.
    """
    loaded = loaded_from(runner)
    if loaded is not None and not is_resumed(runner):
        return BaseSource('checkpoint', loaded, PREFIX)
    own = own_source(backbone)
    if own is not None:
        return own
    return _source_of_model(model)


def named_bases(cfg: Mapping[str, Any], model: nn.Module | None = None) -> tuple[BaseSource, ...]:
    """The bases that a config names beside the backbone's own ``init_cfg``.

    Args:
        cfg: The config. Its ``load_from`` counts unless it is what is resumed.
        model: The model that was built from it.
    """
    found: list[BaseSource | None] = []
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    base = backbone.get('base') if isinstance(backbone, Mapping) else None
    if isinstance(base, Mapping):
        try:
            found.append(BaseSource(**base))
        except TypeError as error:
            raise CheckpointError(
                f'base={dict(base)!r:.200}: CDRABackbone expects kind, path and prefix ({error})'
            ) from None
    if model is not None:
        found.append(_source_of_model(model))
    if cfg.get('load_from') and not cfg.get('resume'):
        found.append(BaseSource('checkpoint', str(cfg['load_from']), PREFIX))
    return tuple(source for source in found if source is not None)


def _source_of_model(model: nn.Module) -> BaseSource | None:
    whole = _pretrained(getattr(model, 'init_cfg', None))
    if whole is None:
        return None
    prefix = str(whole.get('prefix') or '') + PREFIX
    return BaseSource('checkpoint', str(whole['checkpoint']), prefix)


def own_source(backbone: nn.Module) -> BaseSource | None:
    """What a backbone's own ``init_cfg`` names, None if nothing."""
    init_cfg = _pretrained(getattr(backbone, 'init_cfg', None))
    if init_cfg is None:
        return None
    return BaseSource('init_cfg', str(init_cfg['checkpoint']), str(init_cfg.get('prefix') or ''))


def _pretrained(init_cfg: Any) -> dict[str, Any] | None:
    configs = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    return next((c for c in configs if isinstance(c, dict) and c.get('type') == 'Pretrained'), None)
