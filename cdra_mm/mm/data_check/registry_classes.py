"""Classes that a config names, and what they take where the config says nothing."""

from __future__ import annotations

import inspect
from typing import Any

from mmengine.registry import Registry

__all__ = ['class_of', 'default_of']


def class_of(registry: Registry, kind: Any) -> type | None:
    """The class that a ``type`` means in the current default scope; None where there is none."""
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(None) as own:
            kind = own.get(kind)
    return kind if isinstance(kind, type) else None


def default_of(cls: type | None, name: str) -> Any:
    """The default of an argument of a class, also where it is handed on to a parent; or None."""
    for base in inspect.getmro(cls) if cls is not None else ():
        parameter = inspect.signature(base.__init__).parameters.get(name)  # type: ignore[misc]
        if parameter is not None:
            return None if parameter.default is parameter.empty else parameter.default
    return None
