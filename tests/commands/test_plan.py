"""`cdra plan`: what a training would plan, and nothing trained."""

from __future__ import annotations

import pytest

pytest.importorskip('mmpretrain')

from cdra_mm.commands import start
from cdra_mm.core import Plan
from cdra_mm.errors import ConfigError
from tests.tools.project import make_project


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    return tmp_path


def test_plan_is_that_of_a_training_and_nothing_is_trained(project, capsys):
    start(['plan', 'block.py'])
    folder = project / 'work_dirs/block_plan'
    plan = (folder / 'cdra_plan.json').read_text()
    assert Plan.from_json(plan).blocks
    assert not list(folder.rglob('*.pth')) and not (folder / 'summary.json').exists()
    out = capsys.readouterr().out
    assert 'train by it: cdra train block.py --cfg-options default_hooks.cdra.plan=' in out
    start(['train', 'block.py', '--cfg-options', 'train_cfg.max_epochs=1'])
    assert (project / 'work_dirs/block/cdra_plan.json').read_text() == plan


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['plain.py'], 'adapts nothing, so there is nothing to plan'),
        (['block.py', '--cfg-options', 'cdra.method.type=full'], 'method full trains without'),
    ],
)
def test_nothing_to_plan_is_said(project, words, message):
    with pytest.raises(ConfigError, match=message):
        start(['plan', *words])
