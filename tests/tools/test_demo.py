"""The demo from end to end, with trainings of a few iterations."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.tools.project import REPOSITORY


def test_demo_trains_tests_merges_and_shows(tmp_path):
    options = ['train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'param_scheduler.0.end=1']
    options += ['default_hooks.checkpoint.interval=4', 'default_hooks.cdra.num_samples=16']
    words = ['--root', tmp_path / 'data', '--work-dir', tmp_path / 'runs']
    result = subprocess.run(
        [sys.executable, REPOSITORY / 'tools/demo.py', *words, '--cfg-options', *options],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith('data: 240 training images, 80 validation images')
    summary = json.loads((tmp_path / 'runs/summary.json').read_text())
    assert set(summary) == {'cdra', 'linear', 'merged'}
    assert summary['merged']['mIoU'] == pytest.approx(summary['cdra']['mIoU'], abs=0.1)
    assert (tmp_path / 'runs/predictions.png').is_file()
