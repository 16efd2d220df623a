"""Progress of long work: counts, rate and time left, on a terminal; little or nothing in a log.

Used by every floor, so it knows the standard library alone. What computes draws nothing: it
tells of its phases (`phase`, `counted`), and who calls it says where they go (`reported_to`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO, TypeVar

__all__ = [
    'Progress',
    'Phases',
    'counted',
    'described',
    'late_line',
    'logged_progress',
    'phase',
    'progress_line',
    'reported_to',
    'time_left',
]

Progress = Callable[[int, 'int | None'], None]
"""Called with the amount done and the total (``None`` when unknown)."""

Phases = Callable[[str, str], Progress]
"""Called with a label and a unit where a phase of work begins; gives its `Progress`."""

SECONDS_BETWEEN = 0.2

Item = TypeVar('Item')
_START: ContextVar[Phases | None] = ContextVar('start', default=None)


def progress_line(
    label: str, *, unit: str = 'bytes', stream: TextIO | None = None, after: float = 0.0
) -> Progress:
    r"""A function that redraws one line of progress, at most five times a second.

    Args:
        label: What is under way.
        unit: ``'bytes'``, shown in MiB, or the plural of what is counted.
        stream: Where to write; the standard error by default. Nothing is written to a stream that
            is no terminal, so that logs stay readable.
        after: Seconds of work before anything is shown; what ends sooner shows nothing.

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
        if now - start < after and 'shown' not in state:
            return
        if not finished and now - state.get('shown', -1.0) < SECONDS_BETWEEN:
            return
        state['shown'] = now
        rate = (done - first) / (now - start) if now > start else 0.0
        out.write('\r\033[K' + described(label, done, total, rate, unit) + '\n' * finished)
        out.flush()

    return show


def described(label: str, done: int, total: int | None, rate: float, unit: str) -> str:
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
        >>> described('a.zip', 5 * 2**20, 10 * 2**20, 2**20, 'bytes')
        'a.zip  5.0 of 10.0 MiB  50 %  1.0 MiB/s  0:05 left'
        >>> described('a.zip', 7, None, 0, 'files')
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
        if digits or rate >= 1:
            parts.append(f'{rate / scale:.{digits}f} {name}/s')
        if total and done < total:
            parts.append(time_left((total - done) / rate))
    return '  '.join(parts)


def time_left(seconds: float) -> str:
    """A time in minutes and seconds, or hours.

    Example:
        >>> time_left(65), time_left(3725)
        ('1:05 left', '1:02:05 left')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{rest:02d} left' if hours else f'{minutes}:{rest:02d} left'


def logged_progress(
    label: str,
    tell: Callable[[str], Any],
    *,
    unit: str,
    parts: int = 4,
    stream: TextIO | None = None,
) -> Progress:
    """A line that is redrawn on a terminal; elsewhere some whole lines for a log.

    Args:
        label: What is under way.
        tell: Takes a line of the log.
        unit: See `progress_line`.
        parts: Lines of the log in all: 4 for one at each quarter.
        stream: See `progress_line`.

    Returns:
        The function to call with (done, total).

    Example:
        >>> show = logged_progress('scoring', print, unit='samples', parts=2)
        >>> for done in range(5):
        ...     show(done, 4)  # doctest: +ELLIPSIS
        scoring  2 of 4 samples  50 %...
        scoring  4 of 4 samples  100 %...
    """
    if (sys.stderr if stream is None else stream).isatty():
        return progress_line(label, unit=unit, stream=stream)
    reported, first = 0, time.monotonic()

    def show(done: int, total: int | None) -> None:
        nonlocal reported
        if not total or done * parts // total <= reported:
            return
        reported = done * parts // total
        taken = time.monotonic() - first
        tell(described(label, done, total, done / taken if taken > 0 else 0.0, unit))

    return show


def late_line(label: str, unit: str) -> Progress:
    """A `progress_line` for what may be over at once: it appears after a second."""
    return progress_line(label, unit=unit, after=1.0)


@contextmanager
def reported_to(start: Phases | None) -> Iterator[None]:
    """Work inside reports to this; with None to whatever it reports to already.

    Args:
        start: Gets a label and a unit at the beginning of each phase.
    """
    token = _START.set(_START.get() if start is None else start)
    try:
        yield
    finally:
        _START.reset(token)


def phase(label: str, unit: str) -> Progress:
    """The function to call with (done, total) of a phase of work; it shows nothing by itself.

    Args:
        label: What is under way.
        unit: The plural of what is counted.
    """
    start = _START.get()
    return (lambda done, total: None) if start is None else start(label, unit)


def counted(items: Collection[Item], label: str, *, unit: str) -> Iterator[Item]:
    """The items, as a `phase` of how many are done.

    Args:
        items: What is worked on.
        label: What is under way.
        unit: The plural of what is counted.

    Example:
        >>> list(counted([3, 4], 'planning', unit='matrices'))
        [3, 4]
    """
    show = phase(label, unit)
    for done, item in enumerate(items):
        show(done, len(items))
        yield item
    show(len(items), len(items))
