"""How many threads torch's operations on the CPU take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ['one_thread']

_lock = threading.Lock()
_inside = 0  # callers in `one_thread`, over all threads
_before = 0  # the number that the first of them found
_own = threading.local()  # how deep the calling thread is in it


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch's CPU operations run on the calling thread alone, for a while.

    Planning is thousands of short operations, half of them serial in torch. On
    a machine that others use too, a team of two threads waited for each other
    at every one of them and took ten times as long as one thread.

    Calls may be nested, and may overlap in several threads. Torch keeps one number for the
    process, which a new thread takes over as its own, and one for each thread: what a caller
    finds while another is inside is that other's 1. So all go back to what the first has found.
    """
    global _inside, _before
    with _lock:
        # Asked of every thread: one that has never asked takes the process' number over later.
        found = torch.get_num_threads()
        if not _inside:
            _before = found
        _inside += 1
        torch.set_num_threads(1)
    _own.depth = getattr(_own, 'depth', 0) + 1
    try:
        yield
    finally:
        _own.depth -= 1
        with _lock:
            _inside -= 1
            if not _own.depth:
                torch.set_num_threads(_before)
