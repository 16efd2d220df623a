"""A script runs as it would alone, and its stages are told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module

import pytest

from cdra_mm.benchmark.start import traced
from cdra_mm.benchmark.start.stages import ITERATIONS, STAGES

LIBRARY = """
import time

def build():
    time.sleep(0.02)

class Loop:
    @classmethod
    def of(cls):
        time.sleep(0.02)
        return cls()

    def step(self):
        time.sleep(0.02)
"""
SCRIPT = """
import sys
from worked import Loop, build  # a name of its own

assert __name__ == '__main__' and sys.argv[1:] == ['--steps', '9'], sys.argv
build()
loop = Loop.of()
for _ in range(9):
    loop.step()
open(sys.argv[0] + '.ended', 'w')
"""
# In the process that is traced: stages of the toy above.
CHILD = """
import sys
from cdra_mm.benchmark.start import traced
traced.STAGES = {'building': ('worked:build', 'worked:Loop.of', 'worked:Loop.gone', 'gone:f')}
traced.ITERATIONS = ('worked:Loop.step',)
traced.main(sys.argv[1:])
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / 'worked.py').write_text(LIBRARY)
    path = tmp_path / 'script.py'
    path.write_text(SCRIPT)
    return path


def run(script, count, repository):
    out = script.with_name('out.json')
    words = [str(out), repr(time.time() - 1), str(count), str(script), '--steps', '9']
    result = subprocess.run(
        [sys.executable, '-c', CHILD, *words],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result, json.loads(out.read_text()) if out.exists() else None


def test_stages_up_to_the_first_iteration_and_the_iterations(script, repository):
    result, report = run(script, 3, repository)
    assert result.returncode == 0, result.stderr
    stages = report['stages']
    assert stages['building']['entered'] == 2 and stages['building']['seconds'] > 0.04
    assert stages['interpreter']['seconds'] > 1  # since the process was started
    assert stages['imports']['entered'] >= 1 and 'training steps' not in stages
    assert report['steps']['seconds'] > 0.06 and report['peak_bytes'] > 1e6
    assert not script.with_name('script.py.ended').exists()  # it ends after three


def test_run_that_ends_too_early_is_a_failure(script, repository):
    result, report = run(script, 10, repository)
    assert result.returncode != 0 and 'ended before 10 iterations were done' in result.stderr
    assert report is None


@pytest.mark.parametrize('name', [*(n for names in STAGES.values() for n in names), *ITERATIONS])
def test_functions_of_the_stages_are_there(name):
    module, _, attribute = name.partition(':')
    owner = import_module(module)
    for part in attribute.split('.'):
        owner = getattr(owner, part)
    assert callable(owner) and traced.STAGES is STAGES
