"""Progress of long work: tqdm's line on a terminal; some whole lines, or nothing, in a log.

What computes draws nothing: it tells of its phases (`phase`, `counted`), and who calls it says
where they go (`reported_to`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO, TypeVar

__all__ = [
    'Phases',
    'Progress',
    'counted',
    'late_line',
    'logged_progress',
    'phase',
    'progress_line',
    'reported_to',
    'duration',
    'time_left',
]

Progress = Callable[[int, 'int | None'], None]
"""Called with the amount done and the total (``None`` when unknown)."""

Phases = Callable[[str, str], Progress]
"""Called with a label and a unit where a phase of work begins; gives its `Progress`."""

LOG_LINE = '{desc}  {n_fmt} of {total_fmt}{unit}  {percentage:.0f} %'

Item = TypeVar('Item')
_START: ContextVar[Phases | None] = ContextVar('start', default=None)


def progress_line(
    label: str, *, unit: str = 'bytes', stream: TextIO | None = None, after: float = 0.0
) -> Progress:
    r"""A function that redraws one line of progress.

    Args:
        label: What is under way.
        unit: ``'bytes'``, shown in KiB, MiB and so on, or the plural of what is counted.
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
    line: Any = None

    def show(done: int, total: int | None) -> None:
        nonlocal line
        if line is None:
            from tqdm import tqdm  # not for a --help

            # A resumed transfer starts above zero: its rate counts only what came since.
            line = tqdm(
                desc=label, total=total, initial=done, delay=after, file=out, **_written_in(unit)
            )
        line.total = total
        line.update(done - line.n)
        if total is not None and done >= total:
            line.close()

    return show


def _written_in(unit: str) -> dict[str, Any]:
    if unit == 'bytes':
        return dict(unit='B', unit_scale=True, unit_divisor=1024)
    return dict(unit=f' {unit}')


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(47.2), duration(1530), duration(7384)
        ('47 s', '25 min 30 s', '2 h 3 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f'{whole} s'
    minutes, rest = divmod(whole, 60)
    return f'{minutes} min {rest} s' if minutes < 60 else f'{minutes // 60} h {minutes % 60} min'


def time_left(seconds: float) -> str:
    """A time in minutes and seconds, or hours.

    Example:
        >>> time_left(65), time_left(3725)
        ('01:05 left', '1:02:05 left')
    """
    from tqdm import tqdm

    return f'{tqdm.format_interval(seconds)} left'


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
        scoring  4 of 4 samples  100 %
    """
    if (sys.stderr if stream is None else stream).isatty():
        return progress_line(label, unit=unit, stream=stream)
    reported, first = 0, time.monotonic()

    def show(done: int, total: int | None) -> None:
        nonlocal reported
        if not total or done * parts // total <= reported:
            return
        reported = done * parts // total
        left = (time.monotonic() - first) * (total - done) / done

        from tqdm import tqdm

        line = tqdm.format_meter(
            done, total, 0, prefix=label, bar_format=LOG_LINE, **_written_in(unit)
        )
        tell(line + (f'  {time_left(left)}' if done < total else ''))

    return show


def late_line(label: str, unit: str) -> Progress:
    """A `progress_line` for what may be over at once: it appears after a second."""
    return progress_line(label, unit=unit, after=1.0)


@contextmanager
def reported_to(start: Phases | None) -> Iterator[None]:
    """Work inside reports to this; with None to whatever it reports to already."""
    token = _START.set(_START.get() if start is None else start)
    try:
        yield
    finally:
        _START.reset(token)


def phase(label: str, unit: str) -> Progress:
    """The function to call with (done, total) of a phase of work; it shows nothing by itself."""
    start = _START.get()
    return (lambda done, total: None) if start is None else start(label, unit)


def counted(items: Collection[Item], label: str, *, unit: str) -> Iterator[Item]:
    """The items, as a `phase` of how many are done.

    Example:
        >>> list(counted([3, 4], 'planning', unit='matrices'))
        [3, 4]
    """
    show = phase(label, unit)
    for done, item in enumerate(items):
        show(done, len(items))
        yield item
    show(len(items), len(items))
