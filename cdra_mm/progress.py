"""Progress of long work: tqdm's line on a terminal; some whole lines, or nothing, in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

__all__ = ['Progress', 'counted', 'logged_progress', 'progress_line', 'silent', 'time_left']

Progress = Callable[[int, 'int | None'], None]
"""Called with the amount done and the total (``None`` when unknown)."""

LOG_LINE = '{desc}  {n_fmt} of {total_fmt}{unit}  {percentage:.0f} %'

Item = TypeVar('Item')
_SILENT: ContextVar[bool] = ContextVar('silent', default=False)


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
    if _SILENT.get() or not out.isatty():
        return lambda done, total: None
    line: Any = None

    def show(done: int, total: int | None) -> None:
        nonlocal line
        if line is None:
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


def time_left(seconds: float) -> str:
    """A time in minutes and seconds, or hours.

    Example:
        >>> time_left(65), time_left(3725)
        ('01:05 left', '1:02:05 left')
    """
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
        if _SILENT.get() or not total or done * parts // total <= reported:
            return
        reported = done * parts // total
        left = (time.monotonic() - first) * (total - done) / done
        line = tqdm.format_meter(
            done, total, 0, prefix=label, bar_format=LOG_LINE, **_written_in(unit)
        )
        tell(line + (f'  {time_left(left)}' if done < total else ''))

    return show


def counted(
    items: Collection[Item], label: str, *, unit: str, stream: TextIO | None = None
) -> Iterator[Item]:
    """The items, with a `progress_line` of how many are done where they take over a second.

    Args:
        items: What is worked on.
        label: What is under way.
        unit: The plural of what is counted.
        stream: See `progress_line`.

    Example:
        >>> list(counted([3, 4], 'planning', unit='matrices'))
        [3, 4]
    """
    show = progress_line(label, unit=unit, stream=stream, after=1.0)
    for done, item in enumerate(items):
        show(done, len(items))
        yield item
    show(len(items), len(items))


@contextmanager
def silent(value: bool = True) -> Iterator[None]:
    """No progress is shown inside: of several processes that do the same, one shows it."""
    token = _SILENT.set(value)
    try:
        yield
    finally:
        _SILENT.reset(token)
