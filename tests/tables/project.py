"""A project folder whose train.py and test.py are fakes: a run takes no time and does as told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from cdra_mm.tables import study
from cdra_mm.tables.study_options import parser

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = """
import json, os, shutil, subprocess, sys, time
from pathlib import Path

words = sys.argv[1:]
options = dict(word.split('=', 1) for word in words[words.index('--cfg-options') + 1:])
folder = Path(words[words.index('--work-dir') + 1])
with (folder / 'calls.txt').open('a') as calls:
    calls.write(' '.join(word for word in ('--final', '--resume') if word in words) + '\\n')
count = len((folder / 'calls.txt').read_text().splitlines())
do = options.get('fake.do', 'well')
print('starting on', os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True)
if do == 'fail' or (do == 'fail_once' and count == 1):
    print('error: the disk is full')
    print()
    sys.exit(2)
if do == 'hang':
    sleep = [sys.executable, '-c', 'import time; time.sleep(300)']
    child = subprocess.Popen(sleep, close_fds=False)
    (folder / 'pids.txt').write_text(f'{os.getpid()} {child.pid}')
    time.sleep(300)
method = options['default_hooks.cdra.method.type']
value = {'cdra': 70.0, 'linear': 50.0, 'full': 60.0}[method] + 2 * int(options['randomness.seed'])
rate = float(options.get('optimizer.lr', 0.1))
value -= 100 * abs(rate - 0.1)
summary = dict(method=method, trainable_backbone=2, trainable_head=3, backbone_parameters=1000,
               percent_of_backbone=0.2, metrics={'top1': value, 'iou': value / 2})
if do == 'without':
    summary['metrics'] = {}
if do == 'not_a_number':
    summary['metrics']['top1'] = float('nan')
(folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
for name in ('epoch_2.pth', 'best_top1_epoch_1.pth'):
    shutil.copy(Path(sys.argv[0]).with_name('checkpoint.pth'), folder / name)
text = json.dumps(summary)
if do == 'half' and count == 1:
    text = text[:20]
if do != 'silent':
    (folder / 'summary.json').write_text(text)
"""
CONFIG = """
cats = 'all'
final_run = dict(cats='all and those held out')
"""
TEST = """
import json, sys
from pathlib import Path

words = sys.argv[1:]
folder = Path(words[words.index('--work-dir') + 1])
assert Path(words[1]).is_file(), words
summary = json.loads((folder / 'summary.json').read_text())
summary['test_metrics'] = {key: value + 1 for key, value in summary['metrics'].items()}
(folder / 'summary.json').write_text(json.dumps(summary))
"""
GRID = """
title = 'Toy'
metrics = dict(top1='top-1')
seeds = [0, 1]
methods = dict(
    full=dict(title='Full', method=dict(type='full')),
    linear=dict(title='Linear', family='Cheap', method=dict(type='linear')),
    cdra=dict(title='CDRA', family='Cheap', method=dict(type='cdra', budget_percent=0.5)),
)
tasks = dict(
    cats=dict(title='Cats', group='Animals', config='../toy/cats.py', report='final_run'),
    dogs=dict(title='Dogs', group='Animals', config='../toy/dogs.py', report='final_run'),
    cars=dict(title='Cars', group='Things', config='../toy/cars.py', report='test'),
)
"""


class Project:
    """The folder, and tables.py in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / 'out'
        for name in ('tools', 'configs/tables', 'configs/toy'):
            (folder / name).mkdir(parents=True)
        (folder / 'tools/train.py').write_text(TRAIN)
        (folder / 'tools/test.py').write_text(TEST)
        # Runs that are fakes need nothing that would be imported for them beforehand.
        tables, before = (REPOSITORY / 'tools/tables.py').read_text(), '    main_of = '
        assert before in tables
        without = "    study.warm_start.IMPORTS = ''\n"
        (folder / 'tools/tables.py').write_text(tables.replace(before, without + before))
        # What a run goes on from, as far as a look at its index tells.
        torch.save({'message_hub': {}, 'optimizer': {}}, folder / 'tools/checkpoint.pth')
        for name in ('cats', 'dogs', 'cars'):
            (folder / f'configs/toy/{name}.py').write_text(CONFIG)
        self.write_grid(GRID)

    def write_grid(self, text: str, name: str = 'toy') -> Path:
        path = self.folder / f'configs/tables/{name}.py'
        path.write_text(text)
        return path

    def run(self, *words: str) -> None:
        """tables.py in this process."""
        given = ['toy', '--out', str(self.out), '--devices', 'cpu', *map(str, words)]
        study.main(parser().parse_args(given), self.folder / 'tools')

    def start(self, *words: str) -> subprocess.Popen:
        """tables.py as a process of its own."""
        tool = str(self.folder / 'tools/tables.py')
        given = ['toy', '--out', str(self.out), '--devices', 'cpu', *words]
        return subprocess.Popen(
            [sys.executable, tool, *given],
            cwd=self.folder,
            env={**os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def calls(self, job: str) -> list[str]:
        """The flags of each start of a job's training."""
        path = self.out / job / 'calls.txt'
        return path.read_text().splitlines() if path.is_file() else []

    def summary(self, job: str) -> dict:
        return json.loads((self.out / job / 'summary.json').read_text())


def stat(pid: int) -> list[str]:
    """State, parent, group, session and more of a process, as Linux tells them."""
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return stat(pid)[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, 'it did not happen'
        time.sleep(0.05)


def end(pid: int) -> None:
    if alive(pid):
        os.kill(pid, signal.SIGKILL)
