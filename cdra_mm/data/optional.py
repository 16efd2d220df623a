"""Packages that only some of the data sets need."""

from __future__ import annotations

import importlib
from types import ModuleType

from cdra_mm.errors import DataError

__all__ = ['optional_module']


def optional_module(name: str, package: str) -> ModuleType:
    """Import a module that the core does not depend on.

    Raises:
        DataError: If it is not installed; says how to install it.

    Example:
        >>> optional_module('json', 'nothing').__name__
        'json'
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise DataError(f'this data set needs {package}: pip install {package}') from error
