"""Launching a kernel of Triton again without Triton's search for what it compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ['Launch', 'Run', 'compiled_run']

# Launches what was launched before once more, given the addresses of what it read and wrote: of
# tensors of the same types, sizes and strides, aligned to 16 bytes where those were.
Launch = Callable[..., None]
Run = Callable[..., Any]  # takes the arguments of a kernel, constants too


def compiled_run(compiled: Any, *grid: int) -> Run | None:
    """The compiled kernel with its grid, None where there is none.

    Triton's search for it takes longer than the launch itself.
    """
    if compiled is None or not _takes_all_arguments():  # the interpreter compiles none
        return None
    run: Run = compiled[(*grid, 1, 1)[:3]]
    return run


@cache
def _takes_all_arguments() -> bool:
    """Whether a compiled kernel is called with constants too: from Triton 3.3 on."""
    import triton

    return tuple(map(int, triton.__version__.split('.')[:2])) >= (3, 3)
