"""Whether a config builds a segmentor or a classifier."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.registry import MODELS

__all__ = ['KINDS', 'is_kind']

# Base classes of mmseg and mmpretrain, by what they are called here.
KINDS = {'segmentor': 'BaseSegmentor', 'classifier': 'BaseClassifier'}


def is_kind(cfg: Config, kind: str) -> bool:
    """Whether the model of a config is of that kind, a key of `KINDS`.

    Args:
        cfg: A config whose packages are registered (see `launch.prepare_config`).
        kind: The kind.
    """
    found = cfg.model.get('type')
    if isinstance(found, str):
        with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            found = registry.get(found)
    bases = {base.__name__ for base in getattr(found, '__mro__', ())}
    return KINDS[kind] in bases
