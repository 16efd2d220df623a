"""Fine-tuning methods behind one contract (`base.Method`), one file each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cdra_mm.core import ConfigError

from .adapter import AdapterTuning
from .base import Method
from .bias import Bias
from .cdra import CDRA
from .full import Full
from .gps import GPS
from .linear import Linear
from .lora import LoRA
from .mlp import MLP
from .partial import Partial
from .rlrr import RLRR
from .spt import SPTAdapter, SPTLoRA
from .vpt import VPTDeep, VPTShallow

__all__ = [
    'CDRA',
    'GPS',
    'METHODS',
    'AdapterTuning',
    'Bias',
    'MLP',
    'Partial',
    'Full',
    'Linear',
    'LoRA',
    'Method',
    'SPTAdapter',
    'SPTLoRA',
    'RLRR',
    'VPTDeep',
    'VPTShallow',
    'did_you_mean',
    'make_method',
]

METHODS: dict[str, type[Any]] = {
    cls.name: cls
    for cls in (
        CDRA,
        Linear,
        Full,
        Bias,
        Partial,
        MLP,
        AdapterTuning,
        VPTShallow,
        VPTDeep,
        LoRA,
        SPTLoRA,
        SPTAdapter,
        GPS,
        RLRR,
    )
}


def make_method(config: Mapping[str, Any]) -> Method:
    """The method of a config ``dict(type=name, **settings)``.

    Raises:
        ConfigError: If the name or a setting is unknown, or a value is out of range.

    Example:
        >>> make_method({'type': 'cdra', 'gamma': 0.01}).gamma
        0.01
    """
    settings = dict(config)
    name = settings.pop('type', None)
    if name not in METHODS:
        raise ConfigError(
            f'method type {name!r} is unknown{did_you_mean(str(name), METHODS)}: expected one of '
            f'{", ".join(METHODS)}'
        )
    known = [field.name for field in fields(METHODS[name])]
    for key in settings:
        if key not in known:
            raise ConfigError(
                f'method {name!r} has no setting {key!r}{did_you_mean(key, known)}: expected '
                + (', '.join(known) or 'none')
            )
    method: Method = METHODS[name](**settings)
    return method


def did_you_mean(word: str, known: Any) -> str:
    """`` (did you mean 'x'?)``, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f' (did you mean {near[0]!r}?)' if near else ''
