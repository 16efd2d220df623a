"""The command line run in this process, and data sets made small."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from cdra_mm import command_line
from cdra_mm.data import SOURCES, Source
from cdra_mm.data import sources as sources_module


@pytest.fixture(scope='module')
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        'prepare_data', repository / 'tools/prepare_data.py'
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tool: ModuleType, capsys: pytest.CaptureFixture[str]):
    """Runs the command in this process; gives its exit code, output and error lines."""

    def call(*arguments: object) -> tuple[int, str, list[str]]:
        code = 0
        try:
            command_line.run(lambda: tool.main([str(a) for a in arguments]))
        except SystemExit as stop:
            code = stop.code
        output, errors = capsys.readouterr()
        return code, output, errors.splitlines()

    return call


@pytest.fixture
def shrink(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Source]:
    """Sets a data set to two images a split, and whatever else a test changes of it."""

    def change(name: str, **changes: object) -> Source:
        source = SOURCES[name]
        splits = tuple(replace(split, count=2) for split in source.splits)
        source = replace(source, splits=splits, size=None, checksum=None, **changes)
        monkeypatch.setitem(sources_module.SOURCES, name, source)
        return source

    return change


@pytest.fixture
def tree() -> Callable[[Path], list[str]]:
    """Names of all files below a folder."""
    return lambda folder: sorted(
        str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()
    )
