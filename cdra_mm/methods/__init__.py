"""Fine-tuning methods behind one contract (`base.Method`), one file each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cdra_mm.errors import ConfigError
from cdra_mm.settings import check_types
from cdra_mm.spelling import did_you_mean, unknown

from .adapter import AdapterTuning
from .apla import APLA
from .base import Method, Request, Trials
from .bias import Bias
from .cdra import CDRA
from .dora import DoRA
from .full import Full
from .gps import GPS
from .linear import Linear
from .lora import LoRA
from .mlp import MLP
from .mona import Mona
from .noah import NOAH
from .partial import Partial
from .rlrr import RLRR
from .sharing import SharedAdapters
from .soma import SoMA
from .spt import SPTAdapter, SPTLoRA
from .vpt import VPTDeep, VPTShallow

__all__ = [
    'APLA',
    'CDRA',
    'GPS',
    'METHODS',
    'AdapterTuning',
    'Bias',
    'DoRA',
    'MLP',
    'NOAH',
    'Partial',
    'Full',
    'Linear',
    'LoRA',
    'Method',
    'Mona',
    'SPTAdapter',
    'SPTLoRA',
    'RLRR',
    'Request',
    'SharedAdapters',
    'SoMA',
    'Trials',
    'VPTDeep',
    'VPTShallow',
    'check_types',
    'find_method',
    'make_method',
]

METHODS: dict[str, type[Method]] = {
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
        NOAH,
        APLA,
        SoMA,
        DoRA,
        Mona,
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
    cls = find_method(config)
    settings = {key: value for key, value in config.items() if key != 'type'}
    known = [field.name for field in fields(cls)]
    for key in settings:
        if key not in known:
            raise ConfigError(unknown(f'method {cls.name!r} has no setting', key, known, ''))
    return cls(**settings)


def find_method(config: Mapping[str, Any]) -> type[Method]:
    """The class of a method's config.

    Raises:
        ConfigError: If it is no dict, or its ``type`` is no name of a method.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"method={config!r:.200}: expected a dict such as dict(type='cdra')")
    name = config.get('type')
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(
            f'method type {name!r:.200} is unknown{did_you_mean(name, METHODS)}: expected one of '
            f'{", ".join(METHODS)}'
        )
    return METHODS[name]
