"""A progress line on the terminal: size, rate and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

__all__ = ['Progress', 'progress_line']

Progress = Callable[[int, 'int | None'], None]
"""Called with the amount done and the total (``None`` when unknown)."""

SECONDS_BETWEEN = 0.2


def progress_line(label: str, *, unit: str = 'bytes', stream: TextIO | None = None) -> Progress:
    r"""A function that redraws one line of progress, at most five times a second.

    Args:
        label: What is under way.
        unit: ``'bytes'``, shown in MiB, or the plural of what is counted.
        stream: Where to write; the standard error by default. Nothing is written to a stream that
            is no terminal, so that logs stay readable.

    Returns:
        The function to call with (done, total).

    Example:
        >>> show = progress_line('archive.zip')
        >>> show(0, 2**20)
    """
    out = sys.stderr if stream is None else stream
    if not out.isatty():
        return lambda done, total: None
    state: dict[str, float] = {}

    def show(done: int, total: int | None) -> None:
        now = time.monotonic()
        # A resumed transfer starts above zero: its rate counts only what came since.
        first = state.setdefault('first', done)
        start = state.setdefault('start', now)
        finished = total is not None and done >= total
        if not finished and now - state.get('shown', -1.0) < SECONDS_BETWEEN:
            return
        state['shown'] = now
        rate = (done - first) / (now - start) if now > start else 0.0
        out.write('\r\033[K' + describe(label, done, total, rate, unit) + '\n' * finished)
        out.flush()

    return show


def describe(label: str, done: int, total: int | None, rate: float, unit: str) -> str:
    """The text of a progress line.

    Args:
        label: What is under way.
        done: Amount done.
        total: Amount to do, where known.
        rate: Amount a second.
        unit: ``'bytes'`` or the plural of what is counted.

    Returns:
        One line without its end.

    Example:
        >>> describe('a.zip', 5 * 2**20, 10 * 2**20, 2**20, 'bytes')
        'a.zip  5.0 of 10.0 MiB  50 %  1.0 MiB/s  0:05 left'
        >>> describe('a.zip', 7, None, 0, 'files')
        'a.zip  7 files'
    """
    scale, name = (2**20, 'MiB') if unit == 'bytes' else (1, unit)
    digits = 1 if unit == 'bytes' else 0
    if not total:
        parts = [label, f'{done / scale:.{digits}f} {name}']
    else:
        parts = [label, f'{done / scale:.{digits}f} of {total / scale:.{digits}f} {name}']
        parts.append(f'{100 * done // total} %')
    if rate > 0:
        parts.append(f'{rate / scale:.{digits}f} {name}/s')
        if total and done < total:
            minutes, seconds = divmod(round((total - done) / rate), 60)
            parts.append(f'{minutes}:{seconds:02d} left')
    return '  '.join(parts)
