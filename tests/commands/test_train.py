"""`cdra train`: options that need what a config lacks."""

from __future__ import annotations

import pytest

pytest.importorskip('mmpretrain')

from cdra_mm.commands import start
from cdra_mm.errors import ConfigError
from tests.tools.project import make_project


def test_mixed_precision_of_a_config_without_an_optimizer_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    (tmp_path / 'none.py').write_text("_base_ = 'plain.py'\noptim_wrapper = None\n")
    with pytest.raises(ConfigError, match='optim_wrapper'):
        start(['train', 'none.py', '--amp'])
