"""How many inputs are tried, and what became of them.

The normal run tries a few hundred of each kind, always the same ones; ``make fuzz`` thousands of
new ones (the environment variable ``CDRA_FUZZ_EXAMPLES`` says how many).
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

from cdra_mm.core import CDRAError

EXAMPLES = 'CDRA_FUZZ_EXAMPLES'
FUZZ = settings(
    max_examples=int(os.environ.get(EXAMPLES, 200)),
    derandomize=EXAMPLES not in os.environ,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

TALLIES: dict[str, Counter[str]] = defaultdict(Counter)
"""Inputs by kind: refused, accepted."""


def judged(kind: str, read: Callable[[], Any]) -> Any:
    """What `read` gives, or None where it refuses by an error of ours with a message.

    Any other exception is a crash, and ends the test.
    """
    try:
        result = read()
    except CDRAError as error:
        assert len(str(error)) > 10, f'{type(error).__name__} says {str(error)!r}'
        TALLIES[kind]['refused'] += 1
        return None
    TALLIES[kind]['accepted'] += 1
    assert result is not None
    return result


def assert_both(kind: str) -> None:
    """A generator of which nothing is refused, or nothing is left over, tests little."""
    assert TALLIES[kind]['refused'] > 0 and TALLIES[kind]['accepted'] > 0, TALLIES[kind]
