"""Says at the end how many inputs were tried."""

from __future__ import annotations

import os

from .effort import EXAMPLES, TALLIES


def pytest_terminal_summary(terminalreporter):
    if EXAMPLES not in os.environ:
        return
    for kind, tally in sorted(TALLIES.items()):
        counts = ', '.join(f'{count} {what}' for what, count in sorted(tally.items()))
        terminalreporter.write_line(f'fuzz: {kind}: {sum(tally.values())} inputs: {counts}')
