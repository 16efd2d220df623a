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


def test_a_training_shorter_than_what_is_timed_leaves_no_results(project):
    loop = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=64']
    start(['plan', 'block.py', '--cfg-options', *loop])
    folder = project / 'work_dirs/block_plan'
    assert (folder / 'cdra_plan.json').exists()
    left = [path.name for path in folder.rglob('*') if path.suffix in ('.pth', '.safetensors')]
    assert not left and not (folder / 'summary.json').exists()


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


@pytest.mark.parametrize(
    ('word', 'message'),
    [
        ('default_hooks.checkpoint.intervall=3', "CheckpointHook has no setting 'intervall'"),
        ('val_evaluator.topk=5', 'val_evaluator.topk=5: the head has 2 classes'),
    ],
)
def test_words_that_would_end_the_training_late_are_refused(project, word, message):
    with pytest.raises(ConfigError, match=message):
        start(['plan', 'block.py', '--cfg-options', word])


def test_dry_run_says_bytes_and_reads_nothing(project, capsys):
    weights = next(project.rglob('*.pth'))
    weights.unlink()
    start(['plan', 'block.py', '--dry-run', '--time-blocks', '1', '--batch', '2'])
    out = capsys.readouterr().out
    for text in ('competing', 'scoring, on the CPU', 'fits 80 GB', 'measured: 1 of '):
        assert text in out
    assert not (project / 'work_dirs').exists()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--batch', '2'], '--batch 2: belongs to --dry-run'),
        (['--dry-run', '--image-size', '0'], '--image-size 0: expected at least 1'),
        (['--dry-run', '--memory', '-1'], '--memory -1: expected GB of a GPU'),
        (['--dry-run', '--time-blocks', '99'], '99 blocks to time: expected 1 to '),
    ],
)
def test_options_of_a_dry_run_are_checked(project, words, message):
    with pytest.raises(ConfigError, match=message):
        start(['plan', 'block.py', *words])


def test_dry_run_of_a_config_that_adapts_nothing_is_refused(project):
    with pytest.raises(ConfigError, match='adapts nothing, so there is nothing to plan'):
        start(['plan', 'plain.py', '--dry-run'])
