"""The command lines in a work directory: what is there stays, and is gone on from."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cdra_mm.mm.work_lock import LOCK
from tests.mm.test_resume_interrupted import train  # noqa: F401
from tests.mm.test_work_lock import HOLD

from .project import BLOCK, call, succeed


def test_a_run_that_has_diverged_ends_with_exit_code_1(train, tmp_path):  # noqa: F811
    code, printed = train('--cfg-options', 'optim_wrapper.optimizer.lr=1e30')
    assert code == 1 and 'Traceback' not in printed.err
    assert printed.last.startswith('error: the run has diverged: at iteration ')
    assert 'lr=1e+30' in printed.last
    left = {path.name for path in (tmp_path / 'run').iterdir() if path.is_file()}
    assert left <= {'block.py', 'cdra_plan.json', 'last_checkpoint', 'epoch_1.pth', LOCK}


def test_a_second_run_in_a_work_directory_is_refused(train, tmp_path):  # noqa: F811
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/block.py').write_text('of the other run')
    words = [sys.executable, '-c', HOLD, str(tmp_path / 'run' / LOCK)]
    other = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == 'held\n'
    try:
        code, printed = train()
        assert code == 2 and f'in use: process {other.pid} on far' in printed.last
        assert (tmp_path / 'run/block.py').read_text() == 'of the other run'
        assert {path.name for path in (tmp_path / 'run').iterdir()} == {'block.py', LOCK}
    finally:
        other.kill()
        other.wait()
    assert train('--resume')[0] == 0


def test_the_users_config_and_leftovers_of_an_export(train, tmp_path):  # noqa: F811
    ended = subprocess.run([sys.executable, '-c', 'import os; print(os.getpid())'],
                           stdout=subprocess.PIPE, text=True, check=True)  # fmt: skip
    half = tmp_path / f'.lora.{ended.stdout.strip()}.tmp'
    half.mkdir()
    (half / 'adapter_config.json').write_text('{')
    code, printed = train('--work-dir', '.')
    assert code == 0, printed.err
    assert (tmp_path / 'block.py').read_text() == BLOCK
    assert 'work_dir' in (tmp_path / 'block_run.py').read_text()
    assert not half.exists()


def test_a_test_in_the_work_directory_of_a_training(train, tmp_path):  # noqa: F811
    assert train()[0] == 0
    run = tmp_path / 'run'
    config = (run / 'block.py').read_text()
    summary = json.loads((run / 'summary.json').read_text())
    words = [sys.executable, '-c', HOLD, str(run / LOCK)]
    other = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == 'held\n'
    (run / 'summary.json').write_text('{"method": "cd')  # what a crash of the machine may leave
    try:
        succeed(tmp_path, 'test', 'block.py', 'run/epoch_2.pth', '--work-dir', 'run')
    finally:
        other.kill()
        other.wait()
    assert (run / 'block.py').read_text() == config
    assert 'test_metrics' in json.loads((run / 'summary.json').read_text())
    assert (run / 'summary.json.damaged').is_file() and 'method' in summary


@pytest.mark.skipif(not hasattr(os, 'link'), reason='no hard links here')
def test_predictions_do_not_replace_the_checkpoint(train, tmp_path):  # noqa: F811
    os.link(tmp_path / 'base.pth', tmp_path / 'predictions.pkl')
    before = (tmp_path / 'base.pth').read_bytes()
    words = ('block.py', 'base.pth', '--work-dir', 'run', '--out', 'predictions.pkl')
    ended = call(tmp_path, 'test', *words)
    assert ended.code == 2 and 'predictions.pkl is the base weights' in ended.err
    assert (tmp_path / 'base.pth').read_bytes() == before
