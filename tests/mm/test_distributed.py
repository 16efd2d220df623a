"""Two processes give the plan and the weights that one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cdra_mm.core import Plan

from . import toy


def torchrun(folder: Path, *arguments: str) -> None:
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    command += ['--master_port=0', '--rdzv_backend=c10d', '--rdzv_endpoint=127.0.0.1:0']
    script = str(Path(__file__).with_name('ddp_run.py'))
    result = subprocess.run(
        [*command, script, str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'},
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ddp')
    toy.base_file(folder)
    torchrun(folder)
    return folder


def test_two_processes_make_the_plan_of_one(folder):
    single = toy.train(toy.config(folder, work_dir=str(folder / 'single')))
    plans = [
        Plan.from_json((folder / run / 'cdra_plan.json').read_text()) for run in ('single', 'ddp')
    ]
    assert plans[0] == plans[1]
    # Batch norm sees half the batch per process, so the weights are near, not equal.
    states = [torch.load(folder / f'rank{r}.pth', weights_only=True) for r in (0, 1)]
    assert states[0].keys() == single.model.state_dict().keys()


def test_all_processes_end_with_the_same_parameters(folder):
    states = [torch.load(folder / f'rank{r}.pth', weights_only=True) for r in (0, 1)]
    for key, value in states[0].items():
        if 'running_' not in key:  # local statistics of batch norm
            assert torch.equal(value, states[1][key]), key


def test_a_resumed_distributed_run_ends_with_the_same_weights(folder):
    torchrun(folder, 'resume')
    for rank in (0,):
        whole = torch.load(folder / f'rank{rank}.pth', weights_only=True)
        resumed = torch.load(folder / f'rank{rank}_resumed.pth', weights_only=True)
        for key, value in whole.items():
            if 'running_' not in key:
                assert torch.equal(value, resumed[key]), key
