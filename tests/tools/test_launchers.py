"""The launch scripts: what they start, and two processes on a CPU that they start for real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cdra_mm.core import Plan

from .project import REPOSITORY, environment, make_project, succeed

USAGES = {
    'dist_train': 'CONFIG GPUS',
    'dist_test': 'CONFIG CHECKPOINT GPUS',
    'slurm_train': 'PARTITION JOB_NAME CONFIG [WORK_DIR]',
    'slurm_test': 'PARTITION JOB_NAME CONFIG CHECKPOINT',
}
RECORDER = """#!/usr/bin/env python3
import json, os, sys
print(json.dumps([sys.argv[1:], os.environ.get('MASTER_PORT'), os.environ['PYTHONPATH']]))
"""
# Starts every task with slurm's variables, and ends with the worst exit code.
SRUN = """#!/usr/bin/env python3
import os, subprocess, sys
words = sys.argv[1:]
count = next(int(w.partition('=')[2]) for w in words if w.startswith('--ntasks='))
command = words[next(i for i, w in enumerate(words) if not w.startswith('-')) :]
tasks = [
    subprocess.Popen(command, env={
        **os.environ, 'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i), 'SLURM_NTASKS': str(count),
        'SLURM_NODELIST': 'localhost', 'GLOO_SOCKET_IFNAME': 'lo',
    }) for i in range(count)
]
sys.exit(max(task.wait() for task in tasks))
"""
# Read by every interpreter that starts: says at its end whether it is still one of several.
AT_THE_END = """
import atexit, sys
def tell():
    torch = sys.modules.get('torch')
    if torch is not None and torch.distributed.is_initialized():
        print('still joined', file=sys.stderr)
atexit.register(tell)
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with a config, and stand-ins for the interpreter and srun that print their words."""
    (tmp_path / 'a b.py').write_text('')
    for name in ('python', 'srun'):
        program(tmp_path / name, RECORDER)
    return tmp_path


def launch(folder, script, *words, **variables):
    own = {'PATH': f'{folder}:{environment()["PATH"]}', **variables}
    return subprocess.run(
        [str(REPOSITORY / f'tools/{script}.sh'), *words],
        cwd=folder,
        env={**environment(), **own},
        capture_output=True,
        text=True,
        timeout=400,
    )


def recorded(folder, script, *words, **variables):
    result = launch(folder, script, *words, **variables)
    assert result.returncode == 0, result.stderr
    arguments, port, path = json.loads(result.stdout)
    assert Path(path.split(':')[0]).resolve() == REPOSITORY
    return arguments, port


@pytest.mark.parametrize(('script', 'words'), [
    ('train', ['a b.py']), ('test', ['a b.py', 'a.pth']),
])  # fmt: skip
def test_dist_scripts_start_torchrun(folder, script, words):
    options = ['--cfg-options', 'a="[1, 2]"']
    tool = str(REPOSITORY / f'tools/{script}.py')
    end = ['--nproc_per_node=8', tool, *words, '--launcher', 'pytorch', *options]
    begin = ['-m', 'torch.distributed.run']
    arguments, _ = recorded(folder, f'dist_{script}', *words, '8', *options)
    assert arguments == [*begin, '--standalone', *end]
    arguments, _ = recorded(
        folder, f'dist_{script}', *words, '8', *options,
        NNODES='2', NODE_RANK='1', MASTER_ADDR='first', PORT='7',
    )  # fmt: skip
    meeting = ['--nnodes=2', '--node_rank=1', '--master_addr=first', '--master_port=7']
    assert arguments == [*begin, *meeting, *end]


@pytest.mark.parametrize(('script', 'words', 'expected'), [
    ('train', ['a b.py'], ['a b.py', '--launcher', 'slurm']),
    ('train', ['a b.py', 'out', '--amp'],
     ['a b.py', '--launcher', 'slurm', '--work-dir', 'out', '--amp']),
    ('train', ['a b.py', '--amp'], ['a b.py', '--launcher', 'slurm', '--amp']),
    ('test', ['a b.py', 'a.pth', '--out', 'x'],
     ['a b.py', 'a.pth', '--launcher', 'slurm', '--out', 'x']),
])  # fmt: skip
def test_slurm_scripts_start_srun(folder, script, words, expected):
    arguments, port = recorded(
        folder, f'slurm_{script}', 'gpu', 'name', *words,
        GPUS='16', SRUN_ARGS='--time=1 --qos=low', PORT='7',
    )  # fmt: skip
    assert port == '7'
    resources = ['--partition=gpu', '--job-name=name', '--ntasks=16', '--ntasks-per-node=8']
    resources += [
        '--gres=gpu:8',
        '--cpus-per-task=5',
        '--kill-on-bad-exit=1',
        '--time=1',
        '--qos=low',
    ]
    tool = str(REPOSITORY / f'tools/{script}.py')
    assert arguments == [*resources, 'python', '-u', tool, *expected]


@pytest.mark.parametrize(('script', 'words', 'variables', 'message'), [
    *((name, [], {}, f'expected tools/{name}.sh {usage}') for name, usage in USAGES.items()),
    ('dist_train', ['no.py', '2'], {}, 'config no.py does not exist'),
    ('slurm_train', ['gpu', 'name', 'no.py'], {}, 'config no.py does not exist'),
    ('dist_train', ['a b.py', '--amp'], {}, 'GPUS=--amp: expected a number'),
    ('dist_test', ['a b.py', 'a.pth', '0'], {}, 'GPUS=0: expected a number of at least 1'),
    ('dist_train', ['a b.py', '2'], {'NNODES': 'two'}, 'NNODES=two: expected a number'),
    ('slurm_test', ['p', 'n', 'a b.py', 'a.pth'], {'GPUS': 'x'}, 'GPUS=x: expected a number'),
    ('slurm_train', ['p', 'n', 'a b.py'], {'PATH': '/usr/bin:/bin'}, 'srun is not on the PATH'),
])  # fmt: skip
def test_wrong_arguments_end_in_one_line(folder, script, words, variables, message):
    result = launch(folder, script, *words, **variables)
    assert result.returncode == 2 and result.stdout == ''
    (line,) = result.stderr.splitlines()
    assert line.startswith('error: ') and message in line


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A project that one process has trained in."""
    folder = make_project(tmp_path_factory.mktemp('launched'))
    succeed(folder, 'train', 'block.py', '--work-dir', 'one')
    return folder


LAUNCHERS = pytest.mark.parametrize(
    ('launcher', 'words'), [('dist', []), ('slurm', ['gpu', 'name'])]
)


def two_processes(project, launcher, tool, words):
    program(project / 'srun', SRUN)
    gpus = ['2'] if launcher == 'dist' else []
    (project / 'ends').mkdir(exist_ok=True)
    (project / 'ends/sitecustomize.py').write_text(AT_THE_END)
    result = launch(
        project, f'{launcher}_{tool}', *words, *gpus, '--work-dir', f'{tool}_{launcher}',
        PYTHON=sys.executable, GPUS='2', CUDA_VISIBLE_DEVICES='-1',
        PYTHONPATH=f'{project / "ends"}:{environment()["PYTHONPATH"]}',
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    # A group that outlives its interpreter can abort it when all is done.
    assert 'still joined' not in result.stderr
    return project / f'{tool}_{launcher}'


@pytest.mark.timeout(900)
@LAUNCHERS
def test_two_processes_train(project, launcher, words):
    folder = two_processes(project, launcher, 'train', [*words, 'block.py'])
    plans = [Plan.from_json((f / 'cdra_plan.json').read_text()) for f in (project / 'one', folder)]
    assert plans[0] == plans[1] and (folder / 'epoch_2.pth').is_file()


@pytest.mark.timeout(900)
@LAUNCHERS
def test_two_processes_test(project, launcher, words):
    """What they give is that of one process: tests/mm/test_distributed.py."""
    folder = two_processes(project, launcher, 'test', [*words, 'block.py', 'one/epoch_2.pth'])
    metrics = json.loads((folder / 'summary.json').read_text())['test_metrics']
    assert metrics.keys() == {'accuracy/top1'}


@pytest.mark.timeout(900)
def test_image_that_one_process_cannot_read_ends_both(project):
    (project / 'data/train/light/3.png').write_bytes(b'no image')
    result = launch(
        project, 'dist_train', 'block.py', '2', '--work-dir', 'broken',
        PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='-1',
    )  # fmt: skip
    assert result.returncode == 1  # torchrun's own
    lines = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    # Both say it, unless torchrun ends the slower one first.
    assert lines and all('light/3.png' in line for line in lines)
    assert not list((project / 'broken').glob('*.pth'))
