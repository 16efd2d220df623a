"""The command line run in this process, and data sets made small."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from cdra_mm import command_line
from cdra_mm.data import SOURCES, Archive, Source
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
    """Sets a data set to a few images a split, without checksums, fetched from ``address``."""

    def change(
        name: str, *, count: int | dict[str, int] = 2, address: str = '', **changes: object
    ) -> Source:
        source = SOURCES[name]
        counts = count if isinstance(count, dict) else {s.name: count for s in source.splits}
        splits = tuple(replace(s, count=counts[s.name], **changes) for s in source.splits)
        files = tuple(
            Archive(file.name, address and f'{address}/{file.name}') for file in source.files
        )
        source = replace(source, splits=splits, files=files)
        monkeypatch.setitem(sources_module.SOURCES, name, source)
        return source

    return change


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """The bytes of a small image."""

    def make(mode: str = 'RGB', size: tuple[int, int] = (12, 8), value: object = 0) -> bytes:
        image = pytest.importorskip('PIL.Image').new(mode, size, value)
        out = io.BytesIO()
        image.save(out, 'jpeg' if mode == 'RGB' else 'png')
        return out.getvalue()

    return make


@pytest.fixture
def tree() -> Callable[[Path], list[str]]:
    """Names of all files below a folder."""
    return lambda folder: sorted(
        str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()
    )
