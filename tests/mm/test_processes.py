"""How processes find each other, and what is told where they cannot."""

from __future__ import annotations

import os

import pytest
import torch
from mmengine.config import Config

from cdra_mm.core import ConfigError
from cdra_mm.mm.parallel import processes
from cdra_mm.mm.parallel.processes import start_processes

TORCHRUN = dict(RANK='1', WORLD_SIZE='2', LOCAL_RANK='1', MASTER_ADDR='here', MASTER_PORT='1')
SLURM = dict(SLURM_PROCID='3', SLURM_NTASKS='4', SLURM_LOCALID='1', SLURM_NODELIST='node7')
MPI = dict(OMPI_COMM_WORLD_RANK='0', OMPI_COMM_WORLD_SIZE='2', OMPI_COMM_WORLD_LOCAL_RANK='0')


@pytest.fixture
def joined(monkeypatch):
    """An environment of no launcher on a machine without GPUs; what processes were joined with."""
    for name in (*TORCHRUN, *SLURM, *MPI, 'SLURM_JOB_NODELIST'):
        monkeypatch.setenv(name, '')  # so that it is put back as it was
        monkeypatch.delenv(name)
    calls = []
    monkeypatch.setattr(processes, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(
        torch.distributed,
        'init_process_group',
        lambda *args, **options: calls.append((*args, options)),
    )
    return calls


def give(monkeypatch, variables, **changes):
    for name, value in {**variables, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)


def started(launcher, **config):
    cfg = Config(config)
    start_processes(cfg, launcher)
    return cfg


@pytest.mark.parametrize(('launcher', 'variables', 'places'), [
    ('pytorch', TORCHRUN, ('1', '2', '1', 'here', '1')),
    ('slurm', SLURM, ('3', '4', '1', 'node7', '29500')),
    ('mpi', dict(MPI, MASTER_ADDR='there'), ('0', '2', '0', 'there', '29500')),
])  # fmt: skip
def test_processes_of_each_launcher_are_joined_by_gloo_on_a_cpu(
    joined, monkeypatch, launcher, variables, places
):
    give(monkeypatch, variables)
    monkeypatch.setenv('PATH', '')  # no scontrol
    cfg = started(launcher, env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=60)))
    ((backend, options),) = joined
    assert backend == 'gloo' and options['timeout'].total_seconds() == 60
    assert tuple(os.environ[name] for name in TORCHRUN) == places
    assert cfg.launcher == launcher and cfg.model_wrapper_cfg.device_ids is None
    assert cfg.model_wrapper_cfg.find_unused_parameters is False


def test_first_node_of_a_slurm_list_is_the_address(joined, monkeypatch, tmp_path):
    tool = tmp_path / 'scontrol'
    tool.write_text('#!/bin/sh\n[ "$3" = "rack[3-4]" ] && echo rack3 && echo rack4\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    give(monkeypatch, SLURM, SLURM_NODELIST='rack[3-4]')
    started('slurm', env_cfg=dict(dist_cfg=dict(port=1234)))
    assert (os.environ['MASTER_ADDR'], os.environ['MASTER_PORT']) == ('rack3', '1234')


@pytest.mark.parametrize(('launcher', 'variables', 'message'), [
    ('pytorch', {}, 'without RANK, WORLD_SIZE, LOCAL_RANK .*torchrun .* -m cdra_mm train CONFIG'),
    ('pytorch', dict(TORCHRUN, MASTER_ADDR=None), 'without MASTER_ADDR in .*torchrun'),
    ('pytorch', dict(TORCHRUN, RANK='one'), "RANK='one': expected a number"),
    ('pytorch', dict(TORCHRUN, RANK='2'), 'RANK=2 and WORLD_SIZE=2: expected a rank below'),
    ('slurm', {}, 'without SLURM_PROCID, .*srun --ntasks=GPUS python -m cdra_mm train'),
    ('slurm', dict(SLURM, SLURM_NODELIST='rack[3-4]'), 'without MASTER_ADDR .*host'),
    ('mpi', {}, 'without OMPI_COMM_WORLD_RANK, .*mpirun -np GPUS'),
    ('mpi', MPI, 'without MASTER_ADDR .*set MASTER_ADDR to its host$'),
    ('none', TORCHRUN, 'process 1 of 2 .*add --launcher pytorch'),
])  # fmt: skip
def test_environment_of_another_launcher_is_refused(
    joined, monkeypatch, launcher, variables, message
):
    give(monkeypatch, variables)
    monkeypatch.setenv('PATH', '')
    with pytest.raises(ConfigError, match=message):
        started(launcher)
    assert not joined


@pytest.mark.parametrize('variables', [{}, dict(TORCHRUN, RANK='0', WORLD_SIZE='1')])
def test_one_process_needs_no_launcher(joined, monkeypatch, variables):
    give(monkeypatch, variables)
    assert started('none').launcher == 'none' and not joined


def test_process_without_a_gpu_of_its_own_is_refused(joined, monkeypatch):
    give(monkeypatch, TORCHRUN)
    monkeypatch.setattr(processes, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(ConfigError, match=r'process 1 is number 1 of its node and sees 1 GPU'):
        started('pytorch')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    cfg = started('pytorch')
    assert not joined and 'model_wrapper_cfg' not in cfg  # mmengine does the rest


@pytest.mark.parametrize(('config', 'message'), [
    (dict(model=dict(head=[dict(norm_cfg=dict(type='SyncBN'))])), 'model.head.0.norm_cfg.type=BN'),
    (dict(model=dict(), sync_bn='torch'), 'set sync_bn=None'),
])  # fmt: skip
def test_synced_batch_norm_needs_gpus(joined, monkeypatch, config, message):
    give(monkeypatch, TORCHRUN)
    with pytest.raises(ConfigError, match=message):
        started('pytorch', **config)
    assert not joined
    monkeypatch.setenv('WORLD_SIZE', '1')
    monkeypatch.setenv('RANK', '0')
    started('pytorch', **config)
    assert joined
