"""Fixtures for every test: one thread, fixed seeds, and where the optional data lies."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ['tests.durations']

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)
# Whether the adapted product runs in C++ must not hang on when a compiler ends.
os.environ.setdefault('CDRA_NATIVE', '0')
settings.register_profile(
    'cdra',
    deadline=None,
    max_examples=50,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile('cdra')


@pytest.fixture(scope='module', autouse=True)
def _imports_are_no_garbage() -> None:
    """What was imported stays: a collection of garbage need not look through it each time.

    mmengine collects garbage for every data set that it builds. Through all that torch and
    OpenMMLab hold, that took most of the time of a short run.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def _short_runs() -> Iterator[None]:
    """Runs of a few iterations without two things that take most of their time.

    mmengine has yapf make the config pretty at every checkpoint, and sleeps for two seconds
    whenever a data loader of an iteration-based loop starts anew.
    """
    with pytest.MonkeyPatch.context() as patch:
        if loops := sys.modules.get('mmengine.runner.loops'):
            patch.setattr(loops, 'time', SimpleNamespace(sleep=lambda seconds: None))
            patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same random numbers for a test whether it runs alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_scope_of_another_test() -> Iterator[None]:
    """A run sets mmengine's default scope for its process: the next test starts without one."""
    yield
    if 'mmengine.registry' in sys.modules:
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session')
def repository() -> Path:
    """Root folder of the project."""
    return REPOSITORY


@pytest.fixture(scope='session')
def shared() -> Path:
    """Folder of the optional third-party data; the test is skipped where there is none."""
    folder = Path(os.environ.get('CDRA_SHARED', REPOSITORY.parent / 'shared'))
    if not folder.is_dir():
        pytest.skip(f'no shared data at {folder} (set CDRA_SHARED to its folder)')
    return folder


@pytest.fixture(scope='session')
def spt_masks(shared: Path) -> list[Path]:
    """The released sensitivity masks of a real ViT-B/16, one file per task."""
    files = sorted((shared / 'data' / 'spt_masks').glob('*.npz'))
    if not files:
        pytest.skip(f'no mask files in {shared / "data" / "spt_masks"}')
    return files
