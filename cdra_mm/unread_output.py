"""What a command does goes on when nobody reads what it prints.

``cdra --help | head -1`` ends the reader of a pipe after a line, and the next line of the writer
fails. A run should neither end in a traceback nor be lost for it: its log is kept in a file, too.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ['unread_output_is_dropped']

STREAMS = ('stdout', 'stderr')


class _Pipe(io.FileIO):
    """The writing end of a pipe; what is written after its reader has gone is dropped."""

    def write(self, data: Any, /) -> int:
        """As of a file."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


@contextmanager
def unread_output_is_dropped() -> Iterator[None]:
    """Within it, stdout and stderr that lead into a pipe take every text.

    Other streams (a terminal, a file, what a test puts in their place) stay as they are.
    """
    before = {name: getattr(sys, name) for name in STREAMS}
    try:
        for name, stream in before.items():
            if _leads_into_a_pipe(stream):
                stream.flush()
                setattr(sys, name, _tolerant(stream))
        yield
    finally:
        for name, stream in before.items():
            if getattr(sys, name) is not stream:
                getattr(sys, name).flush()
                setattr(sys, name, stream)


def _leads_into_a_pipe(stream: object) -> bool:
    if not isinstance(stream, io.TextIOWrapper) or stream.closed:
        return False
    raw = getattr(stream.buffer, 'raw', stream.buffer)  # python -u has no buffer between
    return isinstance(raw, io.FileIO) and stat.S_ISFIFO(os.fstat(raw.fileno()).st_mode)


def _tolerant(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Pipe(stream.fileno(), 'w', closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
