"""What each test file costs, recorded, so that the longest start first.

``make test PYTEST_ARGS='--record-durations'`` writes ``tests/durations.json``: CPU seconds of each
file, child processes included, which other work on the machine changes less than wall time.
With ``--dist loadfile --no-loadscope-reorder`` the order of the files is the order in which they
are handed out: started last, a long one would leave the other processes without work.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

RECORD = Path(__file__).with_name('durations.json')


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--record-durations',
        nargs='?',
        const=str(RECORD),
        metavar='FILE',
        help=f'write the CPU seconds of each test file to FILE ({RECORD.name} beside this one)',
    )


def pytest_configure(config: pytest.Config) -> None:
    target = config.getoption('--record-durations', None)
    if target and not hasattr(config, 'workerinput'):
        config.pluginmanager.register(Recorder(Path(target)), 'durations')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Notes beside a test's outcome what its process and that one's children spent so far."""
    before = sum(os.times()[:4])
    item.user_properties.append(('cpu_start', before))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    report.cpu = sum(os.times()[:4]) - dict(item.user_properties)['cpu_start']
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first; within a file, and among unknown files, as they were."""
    known = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    items.sort(key=lambda item: -known.get(item.nodeid.split('::')[0], 0.0))


class Recorder:
    """Adds up what the tests of a run cost and writes it at its end."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.tests: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A report's time is counted from the start of its test: the last one holds them all.
        if report.when == 'teardown':
            self.tests[report.nodeid] += report.cpu

    def pytest_sessionfinish(self) -> None:
        files: Counter[str] = Counter()
        for name, seconds in self.tests.items():
            files[name.split('::')[0]] += seconds
        found = {name: round(seconds, 1) for name, seconds in files.most_common()}
        self.target.write_text(json.dumps(found, indent=1) + '\n')
        each = {name: round(seconds, 1) for name, seconds in self.tests.most_common(80)}
        self.target.with_suffix('.tests.json').write_text(json.dumps(each, indent=1) + '\n')
