"""How the processes of a run find each other, under each launcher, with GPUs and without.

mmengine does this itself where there are GPUs; it selects one in every case, and a
variable that is missing ends in a traceback or in a wait for nobody. So the
variables are checked here first, and on a CPU the processes are joined by gloo.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device

from cdra_mm.command_line import program, script
from cdra_mm.errors import ConfigError

from ..config_parts import dicts_of

__all__ = ['end_processes', 'is_first_process', 'start_processes']

# What a launcher puts into the environment: rank, number of processes, rank on the node.
VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
# How a training is started; the shell scripts of a checkout do the same.
START = {
    'pytorch': ('dist_train.sh', 'CONFIG GPUS', 'torchrun --nproc_per_node=GPUS'),
    'slurm': ('slurm_train.sh', 'PARTITION JOB_NAME CONFIG', 'srun --ntasks=GPUS python'),
    'mpi': ('', '', 'mpirun -np GPUS python'),
}
DEFAULT_PORT = 29500  # torch's own
# Where mmengine selects a device and joins the processes itself.
ACCELERATORS = ('cuda', 'npu', 'mlu', 'musa')
SYNCED_NORMS = ('SyncBN', 'MMSyncBN', 'NaiveSyncBN', 'SyncBatchNorm')


def start_processes(cfg: Config, launcher: str) -> None:
    """Prepares a run of several processes; on a CPU they talk through gloo.

    Args:
        cfg: The config of the run; gets its launcher, on a CPU also a wrapper without devices.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ConfigError: If the environment is not one of that launcher, gives a process no device
            of its own, or the config needs what a CPU has not.
    """
    cfg.launcher = launcher
    if launcher == 'none':
        _refuse_loners()
        return
    rank, count, local_rank = _places(launcher)
    _set_address(launcher, cfg)
    if get_device() == 'cuda' and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f'process {rank} is number {local_rank} of its node and sees '
            f'{torch.cuda.device_count()} GPU(s): start as many processes a node as it has GPUs, '
            'each seeing all of them (slurm: --gres=gpu:N, not --gpus-per-task)'
        )
    if get_device() in ACCELERATORS:
        return
    if count > 1:
        _refuse_synced_norms(cfg)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(local_rank))
    dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg') or {}
    seconds = dist_cfg.get('timeout')
    timeout = None if seconds is None else timedelta(seconds=seconds)
    torch.distributed.init_process_group('gloo', timeout=timeout)
    wrapper = cfg.get('model_wrapper_cfg') or {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
    }
    cfg.model_wrapper_cfg = {**wrapper, 'device_ids': None}


def end_processes() -> None:
    """Parts the processes of a run that has ended well, when the last of them is there.

    An interpreter that ends while a thread of their group still lets go of a tensor can be aborted:
    the launcher then reports a run as failed that has done all its work. A run that ended in an
    error does not come here, since the others would wait for it.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def is_first_process(launcher: str) -> bool:
    """Whether this is process 0 of a run, also before the processes have met."""
    return launcher == 'none' or _places(launcher)[0] == 0


def _refuse_loners() -> None:
    """Several processes that do not know of each other would write into one work directory."""
    rank, count, _ = (os.environ.get(name) for name in VARIABLES['pytorch'])
    if rank is not None and (count or '').isdigit() and int(count or 0) > 1:
        raise ConfigError(
            f'this is process {rank} of {count} (RANK and WORLD_SIZE in the environment), but '
            '--launcher is none, so that each would train alone: add --launcher pytorch, or unset '
            'these variables'
        )


def _places(launcher: str) -> tuple[int, int, int]:
    """Rank, number of processes and rank on the node, from the launcher's variables."""
    names = VARIABLES[launcher]
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(
            f'--launcher {launcher} without {", ".join(missing)} in the environment: '
            + _how_to_start(launcher)
        )
    values = []
    for name in names:
        if not os.environ[name].isdigit():
            raise ConfigError(
                f'{name}={os.environ[name]!r}: expected a number; {_how_to_start(launcher)}'
            )
        values.append(int(os.environ[name]))
    rank, count, local_rank = values
    if rank >= count:
        raise ConfigError(
            f'{names[0]}={rank} and {names[1]}={count}: expected a rank below the number of '
            f'processes; {_how_to_start(launcher)}'
        )
    return rank, count, local_rank


def _how_to_start(launcher: str) -> str:
    shell_script, arguments, launch = START[launcher]
    known = script(shell_script) if shell_script else ''
    either = f'{known} {arguments}, or with ' if known else ''
    return f'start with {either}{launch} {program("train")} CONFIG --launcher {launcher}'


def _set_address(launcher: str, cfg: Config) -> None:
    """Puts into the environment where process 0 listens, unless it is there."""
    port = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('port')
    if launcher != 'pytorch' and (port or 'MASTER_PORT' not in os.environ):
        os.environ['MASTER_PORT'] = str(port or DEFAULT_PORT)
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_node()
    missing = [name for name in ('MASTER_ADDR', 'MASTER_PORT') if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f'--launcher {launcher} without {" and ".join(missing)} in the environment: the '
            'processes do not know where process 0 listens; set MASTER_ADDR to its host'
            + ('' if launcher == 'mpi' else f', or {_how_to_start(launcher)}')
        )


def _first_node() -> str:
    """The first host of the slurm job; '' where slurm does not say it."""
    nodes = os.environ.get('SLURM_NODELIST') or os.environ.get('SLURM_JOB_NODELIST') or ''
    if not nodes:
        return ''
    try:
        told = subprocess.run(
            ['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        # One plain name needs no expanding.
        return '' if set(nodes) & set('[],') else nodes
    return (told.stdout.split() or [''])[0]


def _refuse_synced_norms(cfg: Config) -> None:
    where = next(_synced_norms(cfg.get('model')), None)
    if where is None and cfg.get('sync_bn'):
        where = 'sync_bn'
    if where is not None:
        value = 'None' if where == 'sync_bn' else 'BN'
        raise ConfigError(
            f'{where}: batch norm over several processes runs on GPUs only, and none is visible: '
            f'set {where}={value} for a run on CPUs, whose statistics are then of each process'
        )


def _synced_norms(model: Any) -> Iterator[str]:
    """Places of a model's config that ask for synchronised batch norm."""
    for where, part in dicts_of(model, 'model'):
        kind = part.get('type')
        name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
        if name.rpartition('.')[2] in SYNCED_NORMS:
            yield f'{where}.type'
