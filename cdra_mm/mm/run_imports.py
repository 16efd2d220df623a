"""What a training or test imports on its way, all at once.

For a process that becomes many runs by forking (`cdra_mm.tables.warm_server`). A run imports what
is missing here itself: nothing depends on this list but time.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

from cdra_mm.heavy_imports import heavy_imports

__all__ = ['import_all']

OURS = (
    'checkpoints.base_source',
    'checkpoints.resuming',
    'data_check',
    'datasets',
    'heads',
    'hook',
    'inputs',
    'rebuild',
    'summary',
    'test_time',
    'visual_hook',
    'weights',
    'work_lock',
)
# What OpenMMLab imports no sooner than it draws, logs and writes a config.
LATE = ('matplotlib.pyplot', 'matplotlib.backends.backend_agg', 'setuptools', 'tabulate',
        'yapf.yapflib.yapf_api')  # fmt: skip


def import_all() -> None:
    """Imports our modules of runs, and of OpenMMLab what is there and whole."""
    with heavy_imports():
        from .launch import SCOPES, register_package

        for scope in SCOPES:
            with suppress(Exception):  # what is broken is left to the run that needs it to say
                register_package(scope)
        for name in OURS:
            import_module(f'.{name}', __package__)
        for name in LATE:
            with suppress(ImportError):
                import_module(name)
