"""What the tests cost, recorded: the longest files start first, and the gate leaves long tests out.

``make test PYTEST_ARGS='--record-durations'`` writes ``tests/durations.json``: CPU seconds of each
file and of each long test, child processes included, which other work on the machine changes less
than wall time. With ``--dist loadfile --no-loadscope-reorder`` the order of the files is the order
in which they are handed out: started last, a long one would leave the other processes without
work. A test that takes more than `LONG` seconds is ``slow``, but for those that the gate keeps:
what needs the optional data, and the chains in `KEPT` that nothing shorter covers.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

RECORD = Path(__file__).with_name('durations.json')
LONG = 8.0  # seconds
KEPT = (
    'tests/tools/test_train_test_merge.py',
    'tests/tools/test_launchers.py::test_two_processes_train_and_test[dist',
    'tests/mm/test_distributed.py',
    'tests/mm/test_stock_configs.py::test_stock_config_is_scored_trained_resumed_tested_and_merged'
    '[deit/',
    'tests/mm/test_stock_configs.py::test_stock_config_is_scored_trained_resumed_tested_and_merged'
    '[vit/vit_deit',
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--record-durations',
        nargs='?',
        const=str(RECORD),
        metavar='FILE',
        help=f'write what the tests cost to FILE (default: {RECORD.name} beside this one)',
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
    """Longest files first, and the mark of what is long; unknown tests are short."""
    known = json.loads(RECORD.read_text()) if RECORD.is_file() else {'files': {}, 'long': {}}
    items.sort(key=lambda item: -known['files'].get(item.nodeid.split('::')[0], 0.0))
    for item in items:
        kept = item.nodeid.startswith(KEPT) or 'shared' in getattr(item, 'fixturenames', ())
        if item.nodeid in known['long'] and not kept:
            item.add_marker(pytest.mark.slow)


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
        found = {
            'files': {name: round(seconds, 1) for name, seconds in files.most_common()},
            'long': {name: round(s, 1) for name, s in self.tests.most_common() if s > LONG},
        }
        self.target.write_text(json.dumps(found, indent=1) + '\n')
