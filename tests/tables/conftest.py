"""The fake project."""

import pytest

from cdra_mm.tables import warm_start

from .project import Project


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.setattr(warm_start, 'IMPORTS', '')
    return Project(tmp_path)
