"""Candidates of one setting, timed in turn beside a reference, as a record for the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

from .case import Case
from .timing import add_ratio, is_out_of_memory, measure

__all__ = ['Candidates']


class Candidates:
    """The record of a benchmark while it is made.

    Args:
        case: The setting.
        benchmark: Its name.
        references: The candidates that others are compared with, by the key of the ratio
            (``ratio_vs_<key>``); the first one is the record's reference.
        **settings: Further plain values for the record.

    Attributes:
        record: Plain values; see `report`.
        found: What is known of each candidate, by name.
        skipped: Why others are not compared, by name.
    """

    def __init__(
        self, case: Case, benchmark: str, references: Mapping[str, str], **settings: Any
    ) -> None:
        self.case, self.references = case, references
        self.found: dict[str, dict[str, Any]] = {}
        self.skipped: dict[str, str] = {}
        reference = next(iter(references.values()))
        self.record = {'benchmark': benchmark, **case.describe(), 'reference': reference}
        self.record |= {**settings, 'candidates': self.found, 'skipped': self.skipped}

    @contextmanager
    def fitting(self, name: str) -> Iterator[None]:
        """Inside, a candidate that does not fit into memory is left out; the others go on."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.leave_out(name)

    def leave_out(self, name: str) -> None:
        """Notes that a candidate does not fit."""
        self.found.pop(name, None)
        self.skipped[name] = f'out of memory at batch {self.case.batch}'

    def time(self, runs: Mapping[str, Callable[[], Any]]) -> None:
        """Times the candidates and notes times and ratios."""
        case = self.case
        measured = measure(
            runs, device=case.device, repeats=case.repeats, warmup=case.warmup, seed=case.seed
        )
        for name in measured.failed:
            self.leave_out(name)
        for name, seconds in measured.seconds.items():
            entry = self.found.setdefault(name, {})
            entry |= {'seconds': median(seconds), 'seconds_all': seconds}
            for key, other in self.references.items():
                if other in measured.seconds:
                    add_ratio(entry, key, seconds, measured.seconds[other])
