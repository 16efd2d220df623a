"""One row of docs/wrong_input.md: what is given, what comes of it, and the code that gives it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cdra_mm.core import CDRAError


@dataclass(frozen=True)
class Case:
    """A wrong or a surprising input.

    Attributes:
        given: What the user gives; Markdown.
        provoke: Gives it, in an empty folder. Where it is taken, this also checks what comes of it.
        error: What it ends in; None where it is taken.
        says: What the message holds; or, where it is taken, what happens. Markdown in this case.
    """

    given: str
    provoke: Callable[[Path], Any]
    error: type[CDRAError] | None
    says: str

    @property
    def row(self) -> str:
        """Its line of the document."""
        outcome = f'`{self.error.__name__}`: … {self.says} …' if self.error else self.says
        return f'| {self.given} | {outcome} |'

    def check(self, folder: Path) -> None:
        """Provokes it and compares."""
        if self.error is None:
            self.provoke(folder)
            return
        with pytest.raises(self.error) as caught:
            self.provoke(folder)
        assert type(caught.value) is self.error
        assert self.says in str(caught.value), str(caught.value)


CASES: dict[str, list[Case]] = {}
"""By heading."""


@contextmanager
def heading(title: str):
    """Collects the cases of a section with the decorators that it gives."""
    rows = CASES.setdefault(title, [])

    def refused(given: str, error: type[CDRAError], says: str):
        def keep(provoke: Callable[[Path], Any]) -> Callable[[Path], Any]:
            rows.append(Case(given, provoke, error, says))
            return provoke

        return keep

    def taken(given: str, happens: str):
        def keep(provoke: Callable[[Path], Any]) -> Callable[[Path], Any]:
            rows.append(Case(given, provoke, None, happens))
            return provoke

        return keep

    yield refused, taken
