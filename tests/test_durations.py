"""The record of what tests cost: the gate fits into its time, and a run renews its own files."""

from __future__ import annotations

from pathlib import Path

from .durations import GATE, KEPT, LONG, RECORD, file_of, gate_cost, read_record, renewed

ROOT = Path(__file__).parents[1]


def test_gate_fits_into_its_time():
    """By the record, so that it does not depend on the machine; renew it with --record-durations.

    Where it does not fit: let tests share a run, take out what another test says, or make shorter
    what is longest.
    """
    assert gate_cost(read_record(RECORD)) <= GATE


def test_record_is_of_files_that_are_there():
    record = read_record(RECORD)
    assert not [name for name in record['files'] if not (ROOT / name).is_file()]
    assert all((ROOT / file_of(name)).is_file() for name in record['long'])


def test_what_is_kept_is_there():
    record = read_record(RECORD)
    known = {*record['files'], *record['long']}
    assert not [start for start in KEPT if not any(name.startswith(start) for name in known)]


def test_a_run_of_some_tests_renews_what_it_ran():
    here = f'tests/{Path(__file__).name}'
    record = {
        'files': {'tests/conftest.py': 7.0, here: 20.0, 'tests/gone.py': 30.0},
        'long': {f'{here}::a': 10.0, f'{here}::b': 9.0, 'tests/gone.py::c': 30.0},
    }
    ran = {f'{here}::a': 1.0, f'{here}::d': LONG + 1}
    assert renewed(record, ran, ROOT, whole=False) == {
        'files': {here: 15.0, 'tests/conftest.py': 7.0},
        'long': {f'{here}::b': 9.0, f'{here}::d': 5.0},
    }
    assert renewed(record, ran, ROOT, whole=True) == {
        'files': {'tests/conftest.py': 7.0, here: 6.0},
        'long': {f'{here}::d': 5.0},
    }
