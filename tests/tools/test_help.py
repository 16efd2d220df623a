"""``--help`` answers without what a command needs when it runs."""

from __future__ import annotations

import subprocess
import sys

from cdra_mm.commands import COMMANDS

HEAVY = ('torch', 'numpy', 'mmengine', 'timm', 'matplotlib')
# All in one process; what a command has loaded is forgotten, so that each answers for itself.
ASK = """
import contextlib, io, runpy, sys
def loaded(words, run):
    sys.argv = [*words, '--help']
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            run()
        except SystemExit as end:
            assert end.code in (0, None), (words, end.code)
    assert 'usage: ' in out.getvalue(), words
    found = [name for name in {heavy} if name in sys.modules]
    print(*words, ':', *found)
    for name in found:
        del sys.modules[name]
from cdra_mm.commands import main
loaded(['cdra'], main)
for name in {commands}:
    loaded(['cdra', *name.split()], main)
for path in {scripts}:
    sys.path[0] = path.rpartition('/')[0]
    loaded([path], lambda: runpy.run_path(path, run_name='__main__'))
"""


def test_help_loads_neither_torch_nor_openmmlab(repository):
    scripts = sorted(map(str, (repository / 'tools').glob('*.py')))
    code = ASK.format(heavy=HEAVY, commands=list(COMMANDS), scripts=scripts)
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=repository, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 1 + len(COMMANDS) + len(scripts) and len(scripts) > 10
    assert [line for line in lines if not line.endswith(':')] == []
