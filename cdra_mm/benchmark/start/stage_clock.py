"""The time of nested stages, each without those inside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ['StageClock', 'Spent']


@dataclass
class Spent:
    """What a stage took.

    Attributes:
        seconds: By the clock on the wall.
        cpu_seconds: Of all threads of this process.
        entered: How often it began.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    entered: int = 0


class StageClock:
    """Adds up the time of nested stages; time counts for the innermost one.

    Args:
        outermost: The stage outside of all others.
        begin: When it began, by ``wall``; its CPU time counts from the start of the process.
        wall: Clock of the wall; default ``time.time``, which processes have in common.
        cpu: Clock of the process.
    """

    def __init__(
        self,
        outermost: str,
        begin: float | None = None,
        *,
        wall: Callable[[], float] = time.time,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._wall, self._cpu = wall, cpu
        self._last = (wall() if begin is None else begin, 0.0 if begin is not None else cpu())
        self._open = [outermost]
        self._thread = threading.get_ident()
        self.spent = {outermost: Spent(entered=1)}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs inside is this stage; what another thread does counts for that of this one."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._add_up()
        self._open.append(name)
        self.spent.setdefault(name, Spent()).entered += 1
        try:
            yield
        finally:
            self._add_up()
            self._open.pop()

    def go_on_as(self, name: str) -> None:
        """The innermost stage ends, and another one takes its place."""
        self._add_up()
        self._open[-1] = name
        self.spent.setdefault(name, Spent()).entered += 1

    def stop(self) -> dict[str, Spent]:
        """What each stage has taken up to now, in the order in which they were met."""
        self._add_up()
        return self.spent

    def _add_up(self) -> None:
        now = (self._wall(), self._cpu())
        spent = self.spent[self._open[-1]]
        spent.seconds += now[0] - self._last[0]
        spent.cpu_seconds += now[1] - self._last[1]
        self._last = now
