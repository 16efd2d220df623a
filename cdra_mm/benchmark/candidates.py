"""Candidates of one setting, timed in turn beside a reference, as a record for the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

from .case import Case
from .timing import add_ratio, is_out_of_memory, measure

__all__ = ['Candidates', 'error_line']


def error_line(error: BaseException) -> str:
    r"""An error's type and the first line of what it says.

    Example:
        >>> error_line(ValueError('no such kernel\n at line 3'))
        'ValueError: no such kernel'
    """
    return f'{type(error).__name__}: {str(error).strip()}'.partition('\n')[0]


class Candidates:
    """The record of a benchmark while it is made.

    Args:
        case: The setting.
        benchmark: Its name.
        references: The candidates that others are compared with, by the key of the ratio
            (``ratio_vs_<key>``); the first one is the record's reference.
        keep_going: Whether a candidate with any error is left out, as one that does not fit is;
            the record's ``failed`` names them.
        **settings: Further plain values for the record.

    Attributes:
        record: Plain values; see `report`.
        found: What is known of each candidate, by name.
        skipped: Why others are not compared, by name.
    """

    def __init__(
        self,
        case: Case,
        benchmark: str,
        references: Mapping[str, str],
        keep_going: bool = False,
        **settings: Any,
    ) -> None:
        self.case, self.references, self.keep_going = case, references, keep_going
        self.found: dict[str, dict[str, Any]] = {}
        self.skipped: dict[str, str] = {}
        reference = next(iter(references.values()))
        self.record = {'benchmark': benchmark, **case.describe(), 'reference': reference}
        self.record |= {**settings, 'candidates': self.found, 'skipped': self.skipped}
        self.failed: list[str] = []
        if keep_going:
            self.record['failed'] = self.failed

    @contextmanager
    def fitting(self, name: str) -> Iterator[None]:
        """Inside, a candidate that does not fit into memory is left out; the others go on.

        With `keep_going`, one that has any error.
        """
        try:
            yield
        except Exception as error:
            if not (self.keep_going or is_out_of_memory(error)):
                raise
            self.leave_out(name, error)

    def leave_out(self, name: str, error: Exception) -> None:
        """Notes that a candidate does not fit, or what else went wrong."""
        self.found.pop(name, None)
        if is_out_of_memory(error):
            self.skipped[name] = f'out of memory at batch {self.case.batch}'
        else:
            self.skipped[name] = error_line(error)
            self.failed.append(name)

    def time(self, runs: Mapping[str, Callable[[], Any]]) -> None:
        """Times the candidates and notes times and ratios."""
        case = self.case
        measured = measure(
            runs,
            device=case.device,
            repeats=case.repeats,
            warmup=case.warmup,
            seed=case.seed,
            keep_going=self.keep_going,
        )
        for name, error in measured.failed.items():
            self.leave_out(name, error)
        for name, seconds in measured.seconds.items():
            entry = self.found.setdefault(name, {})
            entry |= {'seconds': median(seconds), 'seconds_all': seconds}
            for key, other in self.references.items():
                if other in measured.seconds:
                    add_ratio(entry, key, seconds, measured.seconds[other])
