"""The script for a machine with a GPU keeps to its time, and runs tests that call kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.core.interpreted import NATIVE

# In the place of Python: notes what it is called with, and takes as long as it is told.
STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$NOTES/$2.txt"
case $2 in
  pytest) sleep "$TESTS" ;;
  *) sleep "$MEASURING" ;;
esac
"""


@pytest.fixture
def script(tmp_path, repository):
    stand_in = tmp_path / 'python'
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)

    def run(tests=0, measuring=0, whole=480):
        given = {'PYTHON': stand_in, 'NOTES': tmp_path, 'TESTS': tests, 'MEASURING': measuring}
        given['GPU_CHECK_SECONDS'] = whole
        begin = time.monotonic()
        result = subprocess.run(
            ['bash', repository / 'tools/gpu_check.sh', tmp_path / 'out', '--repeats', '3'],
            env={**os.environ, **{key: str(value) for key, value in given.items()}},
            capture_output=True,
            text=True,
            check=False,
        )
        result.seconds = time.monotonic() - begin
        names = ('pytest', 'cdra_mm.benchmark.gpu_check')
        result.asked = {name: (tmp_path / f'{name}.txt').read_text().split('\n') for name in names}
        return result

    return run


def option(words, name):
    return words[words.index(name) + 1]


def test_measurements_get_what_the_tests_leave(script):
    result = script()
    asked = result.asked['cdra_mm.benchmark.gpu_check']
    assert result.returncode == 0 and option(asked, '--tests') == '0'
    assert 445 <= int(option(asked, '--seconds')) <= 450
    assert option(asked, '--repeats') == '3'


def test_whole_ends_in_time(script):
    result = script(tests=100, measuring=100, whole=12)
    asked = result.asked['cdra_mm.benchmark.gpu_check']
    assert result.returncode == 1 and result.seconds < 12
    assert option(asked, '--tests') == '124' and int(option(asked, '--seconds')) <= 9
    assert 'cut off after' in result.stderr


@pytest.mark.skipif(NATIVE, reason='a GPU runs what is to be skipped')
def test_tests_for_a_gpu_call_kernels(script, repository):
    """One that passes without a GPU calls none, which the file itself takes for a failure."""
    words = [word for word in script().asked['pytest'] if word and 'test_square_kernel' not in word]
    result = subprocess.run(
        [sys.executable, *words], cwd=repository, capture_output=True, text=True, check=False
    )
    assert ' skipped' in result.stdout and 'passed' not in result.stdout, result.stdout
