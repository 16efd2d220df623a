"""Imports of packages that make a million objects."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['heavy_imports']

MANY = 100  # modules; fewer are not worth it


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Python looks for no garbage while modules are imported, nor ever among what they hold.

    Nearly all that an import makes stays until the process ends. The collector looks through it
    again and again meanwhile, which is a fifth of the time that torch and OpenMMLab take to be
    imported, and once more at each later collection. For the block of a command that imports them.
    """
    known, was_enabled = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # Not where all was imported before: what lives then may be garbage one day.
        if len(sys.modules) - known >= MANY:
            gc.freeze()
        if was_enabled:
            gc.enable()
