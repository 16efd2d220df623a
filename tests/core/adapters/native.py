"""The adapted product in C++ or without it, for a while."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cdra_mm.core.adapters import copied_linear
from cdra_mm.core.adapters.native_linear import NATIVE
from cdra_mm.core.native import building

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, building.COMPILERS)), reason='no C++ compiler'
)


@contextmanager
def native(taken: bool) -> Iterator[Any]:
    """Within it products go through C++ wherever there is a copy, or never; gives the module."""
    before = dict(vars(NATIVE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CDRA_NATIVE', str(int(taken)))
        NATIVE._begun = NATIVE._over = False
        NATIVE._next_look = 0.0
        module = before['_module']
        NATIVE._module = module if taken else None
        tell_bounds()
        try:
            yield NATIVE.take(copied_linear.torch.device('cpu'), True)
        finally:
            module = NATIVE._module or module
            vars(NATIVE).update(before)
            NATIVE._module = module
            tell_bounds()


def tell_bounds() -> None:
    """Tells the module what a test may have changed."""
    NATIVE.tell(copied_linear.LARGEST_BLOCK, copied_linear._gradients)
