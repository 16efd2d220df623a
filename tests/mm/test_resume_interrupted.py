"""Ctrl-C ends a run with one line, and the next one goes on."""

from __future__ import annotations

import json
import signal

import pytest
from mmpretrain.utils import register_all_modules

from cdra_mm.mm.planning.scoring import SeededSamples
from cdra_mm.mm.work_lock import LOCK
from tests.tools.project import call, make_project


@pytest.fixture
def train(tmp_path):
    """Runs tools/train.py in this process: (exit code, what it printed)."""
    register_all_modules(init_default_scope=False)
    # What a shell starts in the background ignores SIGINT, and so would its children.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    make_project(tmp_path)

    def train(*arguments):
        ended = call(tmp_path, 'train', 'block.py', '--work-dir', 'run', *arguments)
        return ended.code, ended

    yield train
    signal.signal(signal.SIGINT, inherited)


def interrupt(monkeypatch, owner, name, at):
    """Sends this process SIGINT at the `at`-th call of a function."""
    real, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def test_an_interrupted_scoring_pass_leaves_nothing_half_done(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, SeededSamples, '__getitem__', at=5)
        code, printed = train()
    assert code == 130
    assert (
        printed.err.strip()
        .splitlines()[-1]
        .startswith(
            'interrupted: no checkpoint was written yet; the same command starts from the beginning'
        )
    )
    assert 'Traceback' not in printed.err
    left = {path.name for path in (tmp_path / 'run').iterdir() if path.is_file()}
    assert left == {'block.py', LOCK}  # mmengine's copy of the config
    code, printed = train('--resume')
    assert code == 0
    assert 'no checkpoint in run: starting from the beginning' in printed.out
    summary = json.loads((tmp_path / 'run/summary.json').read_text())
    assert summary['trainable_backbone'] > 0


def test_an_interrupted_training_says_how_to_go_on(train, tmp_path, monkeypatch):
    from mmengine.hooks import ParamSchedulerHook

    with monkeypatch.context() as patch:
        interrupt(patch, ParamSchedulerHook, 'after_train_iter', at=3)  # in the second epoch
        code, printed = train()
    assert code == 130
    last = printed.err.strip().splitlines()[-1]
    assert last.endswith('epoch_1.pth; go on with the same command and --resume')
    assert 'Traceback' not in printed.err
    assert train('--resume')[0] == 0
    assert (tmp_path / 'run/epoch_2.pth').is_file()


def test_a_full_disk_is_one_line(train, monkeypatch):
    def write(*_, **__):
        raise OSError(28, 'No space left on device', 'run/log.json')

    from mmengine.visualization import LocalVisBackend

    monkeypatch.setattr(LocalVisBackend, 'add_scalars', write)
    code, printed = train()
    assert code == 2
    assert printed.err.strip().splitlines()[-1] == (
        "error: [Errno 28] No space left on device: 'run/log.json': make room and run the same "
        'command again, a training with --resume'
    )
