"""What the tests cost, recorded: the longest files start first, and the gate leaves long tests out.

``make test PYTEST_ARGS='--record-durations'`` writes ``tests/durations.json``: CPU seconds of each
file and of each long test, child processes included, which other work on the machine changes less
than wall time. A run of some files renews what the record says of these alone. With ``--dist
loadfile --no-loadscope-reorder`` the order of the files is the order in which they are handed out:
started last, a long one would leave the other processes without work. A test that takes more than
`LONG` seconds is ``slow``, but for the chains in `KEPT`, which nothing shorter covers. What is left
must fit into `GATE`: tests/test_durations.py holds the record to it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

RECORD = Path(__file__).with_name('durations.json')
LONG = 4.0  # seconds
# CPU seconds of all tests that the gate runs, by a record of a busy machine: 1136 of them took 12
# minutes on two cores beside other work. Setup and lint come on top.
GATE = 1180.0
KEPT = (
    'tests/core/adapters/test_copied_weights.py::test_compiled_model_is_the_eager_one[copied-fused]',
    'tests/core/adapters/test_native_linear.py',  # the first waits for the compiler
    'tests/tools/test_train_test_merge.py',
    'tests/tools/test_pretended_gpu.py',  # three runs, each of which several tests look at
    'tests/test_configs_runs.py::test_dense_config_trains_on_real_images[deit_tiny_camvid',
    'tests/tools/test_launchers.py::test_two_processes_train[dist',
    'tests/mm/test_compiled_backbone.py::test_training_is_the_same_and_one_graph[plain]',
    'tests/mm/test_compiled_backbone.py::test_training_is_the_same_and_one_graph[validated',
    'tests/mm/test_compiled_backbone.py::test_compile_of_the_config',
    'tests/mm/test_compiled_backbone.py::test_compiled_runs_resume_exactly',
    'tests/mm/test_distributed.py',
    'tests/mm/test_stock_configs.py::test_stock_config_is_scored_trained_resumed_tested_and_merged'
    '[vit/vit_deit',
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--record-durations',
        action='store_true',
        help=f'renew what {RECORD.name} says of the tests that run',
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption('--record-durations', False) and not hasattr(config, 'workerinput'):
        some = (config.option.markexpr, config.option.keyword, *('::' in a for a in config.args))
        config.pluginmanager.register(Recorder(whole=not any(some)), 'durations')


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
    known = read_record(RECORD)
    items.sort(key=lambda item: -known['files'].get(file_of(item.nodeid), 0.0))
    for item in items:
        if item.nodeid in left_out(known):
            item.add_marker(pytest.mark.slow)


def read_record(path: Path) -> dict[str, dict[str, float]]:
    """CPU seconds of ``files``, and of the tests in them that are ``long``."""
    return json.loads(path.read_text()) if path.is_file() else {'files': {}, 'long': {}}


def file_of(test: str) -> str:
    return test.split('::')[0]


def left_out(record: dict[str, dict[str, float]]) -> dict[str, float]:
    """What the gate does not run, with its cost."""
    return {name: cost for name, cost in record['long'].items() if not name.startswith(KEPT)}


def gate_cost(record: dict[str, dict[str, float]]) -> float:
    """CPU seconds of what the gate runs."""
    return sum(record['files'].values()) - sum(left_out(record).values())


def renewed(
    record: dict[str, dict[str, float]], ran: dict[str, float], root: Path, whole: bool
) -> dict[str, dict[str, float]]:
    """A record after a run of some tests.

    Args:
        record: As it was.
        ran: CPU seconds of each test that ran.
        root: What names of files count from; those that are gone are left out.
        whole: Whether all tests of a file ran, so that others that the record has are gone.
    """
    touched = set(map(file_of, ran))
    kept = {
        name: cost
        for name, cost in record['long'].items()
        if name not in ran
        and (root / file_of(name)).is_file()
        and not (whole and file_of(name) in touched)
    }
    long = {name: cost for name, cost in ran.items() if cost > LONG} | kept
    files = {name: cost for name, cost in record['files'].items() if (root / name).is_file()}
    for file in touched:
        costs = {**ran, **kept}  # what was deselected costs as much as before
        files[file] = sum(cost for name, cost in costs.items() if file_of(name) == file)
    parts = {'files': files, 'long': long}
    return {
        key: {name: round(cost, 1) for name, cost in Counter(part).most_common()}
        for key, part in parts.items()
    }


class Recorder:
    """Adds up what the tests of a run cost and renews the record at its end."""

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.tests: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A report's time is counted from the start of its test: the last one holds them all.
        if report.when == 'teardown':
            self.tests[report.nodeid] += report.cpu

    def pytest_sessionfinish(self) -> None:
        found = renewed(read_record(RECORD), self.tests, RECORD.parents[1], self.whole)
        RECORD.write_text(json.dumps(found, indent=1) + '\n')
