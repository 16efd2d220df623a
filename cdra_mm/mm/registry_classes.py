"""Classes that a config names, and what they take where the config says nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from mmengine.registry import Registry

__all__ = ['class_of', 'default_of', 'settings_of']


def class_of(registry: Registry, kind: Any) -> type | None:
    """The class that a ``type`` means in the current default scope; None where there is none."""
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(None) as own:
            kind = own.get(kind)
    return kind if isinstance(kind, type) else None


def settings_of(cls: Any) -> list[str]:
    """The names that a class takes, its bases' where it hands on what it does not know."""
    return list(dict.fromkeys(parameter.name for parameter in _parameters(cls)))


def default_of(cls: type | None, name: str) -> Any:
    """The default of an argument of a class, also where it is handed on to a base; or None."""
    parameter = next((p for p in _parameters(cls) if p.name == name), None)
    if parameter is None or parameter.default is parameter.empty:
        return None
    return parameter.default


def _parameters(cls: Any) -> Iterator[inspect.Parameter]:
    """What a class takes by name; its bases' follow where it hands on what it does not know."""
    for base in getattr(cls, '__mro__', ()):
        if '__init__' not in vars(base) or base is object:
            continue
        try:
            parameters = list(inspect.signature(vars(base)['__init__']).parameters.values())[1:]
        except (TypeError, ValueError):  # of a class that is not written in Python
            return
        kinds = [parameter.kind for parameter in parameters]
        others = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
        yield from (p for p in parameters if p.kind not in others)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return
