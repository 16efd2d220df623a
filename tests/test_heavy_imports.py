"""The collector rests while modules are imported, and is as it was afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from cdra_mm.heavy_imports import MANY, heavy_imports


@pytest.fixture(autouse=True)
def _enabled():
    assert gc.isenabled()
    yield
    gc.enable()


def test_collector_is_off_inside_and_on_again_after_a_failure():
    with pytest.raises(ImportError), heavy_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_collector_that_was_off_stays_off():
    gc.disable()
    with heavy_imports():
        pass
    assert not gc.isenabled()


def test_blocks_may_be_nested():
    with heavy_imports():
        with heavy_imports():
            pass
        assert not gc.isenabled()


def test_what_lives_in_a_process_that_has_imported_all_is_still_collected():
    before = gc.get_freeze_count()
    with heavy_imports():
        pass
    assert gc.get_freeze_count() <= before  # what was frozen before may have gone since


def test_what_many_imports_made_is_not_looked_through_again(repository):
    code = (
        'import gc, sys, types\n'
        'from cdra_mm.heavy_imports import heavy_imports\n'
        'with heavy_imports():\n'
        f'    sys.modules.update({{f"m{{n}}": types.ModuleType("m") for n in range({MANY})}})\n'
        'print(gc.get_freeze_count() > 1000, gc.isenabled())'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=repository, capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ['True', 'True'], result.stderr
