"""Whether a name of another package is still what it was when it was written down."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import packages_distributions, version
from types import CodeType
from typing import Any

from cdra_mm.errors import HostError

__all__ = ['HostName', 'check_names']


@dataclass(frozen=True)
class HostName:
    """A name of another package that is no part of its public interface, or that is replaced.

    Attributes:
        path: Dotted path: module, class, name.
        why: What it is used for; completes "used to".
        takes: Parameters of a function in order, ``self`` included. None for other names.
        set_in: Method that sets or reads it on an instance (it is no attribute of the class);
            '' where the class or the module has it.
        optional: Whether a release may be without it.
    """

    path: str
    why: str
    takes: tuple[str, ...] | None = None
    set_in: str = ''
    optional: bool = False

    @property
    def package(self) -> str:
        """The top-level package."""
        return self.path.partition('.')[0]

    @property
    def name(self) -> str:
        """The name itself."""
        return self.path.rpartition('.')[2]

    @property
    def short(self) -> str:
        """The name with its class or module, for messages."""
        return '.'.join(self.path.split('.')[-2:])


def check_names(package: str, names: Iterable[HostName], known: str) -> None:
    """Compares the names of a package with what is installed.

    Args:
        package: Top-level package.
        names: What is known of it.
        known: Releases it is known of, for the message.

    Raises:
        HostError: Names the first one that differs.
    """
    for entry in names:
        fault = _fault(entry)
        if fault:
            raise HostError(
                f'{_release(package)} is not known to cdra_mm: {fault} (used to {entry.why}); '
                f'install {known}, or a newer cdra_mm'
            )


def _fault(entry: HostName) -> str:
    """What differs; '' for nothing."""
    owner = _look_up(entry.path.rpartition('.')[0])
    if owner is None:
        return f'it has no {entry.path.rpartition(".")[0]}'
    if entry.set_in:
        method = inspect.unwrap(getattr(owner, entry.set_in, None) or (lambda: None))
        code = getattr(method, '__code__', None)
        if code is None or not _mentions(code, entry.name):
            return f'{owner.__name__}.{entry.set_in} does not use {entry.name}'
        return ''
    if not hasattr(owner, entry.name):
        return '' if entry.optional else f'{entry.short} is missing'
    if entry.takes is not None:
        found = _parameters(getattr(owner, entry.name))
        if found != entry.takes:
            has = f'takes ({", ".join(found)})' if found is not None else 'is no function'
            return f'{entry.short} {has}, expected ({", ".join(entry.takes)})'
    return ''


def _look_up(path: str) -> Any:
    """A module, or a class in one; None where there is none."""
    try:
        return import_module(path)
    except ImportError:
        module, _, name = path.rpartition('.')
    return getattr(_look_up(module), name, None) if module else None


def _parameters(function: Any) -> tuple[str, ...] | None:
    try:
        return tuple(inspect.signature(inspect.unwrap(function)).parameters)
    except (TypeError, ValueError):
        return None


def _mentions(code: CodeType, name: str) -> bool:
    # Config sets its attributes by their names as texts.
    return name in code.co_names or name in code.co_consts


def _release(package: str) -> str:
    """The installed distribution of a package with its version."""
    for distribution in packages_distributions().get(package, ()):
        return f'{distribution} {version(distribution)}'
    return package
