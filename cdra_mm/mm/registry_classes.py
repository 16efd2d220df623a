"""Classes that a config names, and what they take where the config says nothing."""

from __future__ import annotations

import inspect
from typing import Any

from mmengine.registry import Registry

__all__ = ['class_of', 'default_of', 'settings_of']


def class_of(registry: Registry, kind: Any) -> type | None:
    """The class that a ``type`` means in the current default scope; None where there is none."""
    if isinstance(kind, str) and kind.strip('.'):
        with registry.switch_scope_and_registry(None) as own:
            kind = own.get(kind)
    return kind if isinstance(kind, type) else None


def settings_of(cls: Any) -> list[str]:
    """The names that a class takes, its bases' where it hands on what it does not know."""
    names: list[str] = []
    for base in getattr(cls, '__mro__', ()):
        if '__init__' not in vars(base) or base is object:
            continue
        try:
            parameters = list(inspect.signature(vars(base)['__init__']).parameters.values())[1:]
        except (TypeError, ValueError):  # of a class that is not written in Python
            break
        named = (p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        names += [name for name in named if name not in names]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def default_of(cls: type | None, name: str) -> Any:
    """The default of an argument of a class, or else of the nearest base that has it; or None.

    A base's is what holds where a class calls it without the argument.
    """
    for base in inspect.getmro(cls) if cls is not None else ():
        parameter = inspect.signature(base.__init__).parameters.get(name)  # type: ignore[misc]
        if parameter is not None:
            return None if parameter.default is parameter.empty else parameter.default
    return None
